"""A daemon in small that runs one job of the images and kills itself at a point of it.

    python image_child.py FOLDER build|remove|collect|recover POINT

`recover` takes up what an earlier one left. Prints the number of points when it gets to the end.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from guesthouse.images.building import BuildParams, RemoveParams
from guesthouse.model.document import Noun
from guesthouse.storage.collect import CollectParams
from tests.crash.kill_points import Points
from tests.image_house import ImageHouse, image_house

NAME = "debian/12"


async def submit(house: ImageHouse, case: str) -> str:
    params: Noun
    if case == "build":
        params = BuildParams(name=NAME)
    elif case == "remove":
        params = RemoveParams(image=house.catalogue.resolve(NAME).id)
    else:
        params = CollectParams(grace=-5)
    kind = {"build": "image.build", "remove": "image.remove", "collect": "storage.collect"}[case]
    return (await house.jobs.submit(kind, params)).id


async def work(folder: Path, case: str, points: Points) -> None:
    async with image_house(folder / "house", observer=lambda *_: points.reach()) as house:
        taken_up = [job.id for job in await house.jobs.recover()]
        points.around_disk_changes()
        for job_id in taken_up if case == "recover" else [await submit(house, case)]:
            await house.jobs.wait(job_id, 60)


def main() -> None:
    points = Points(int(sys.argv[3]))
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], points))
    print(points.passed)


if __name__ == "__main__":
    main()
