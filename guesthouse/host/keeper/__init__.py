"""The keeper: a tiny process, one per house, that outlives the daemon.

It is the parent of every guest's process. It writes down how each one ended, drains serial
consoles into capped log files, listens for the last word of each QMP monitor, and holds file
descriptors that a restarted daemon fetches again. If it is killed, guests live on; a new keeper
adopts them, and only their exit codes become unknown.

Rules of this package:

* standard library only, and nothing of the rest of the house: it is started as
  ``python3 -I -S …/keeper/__main__.py`` and stays below 15 MiB;
* every module is imported at the start, so an upgrade of the files underneath it does no harm;
* one thread, one selector, no polling: with nothing to do it uses no processor time;
* the protocol is versioned (`wire.PROTOCOL`), because a newer daemon meets an older keeper.

Deliberately no PR_SET_CHILD_SUBREAPER: every guest's process is a direct child (no step of the
launcher forks) and is watched and reaped by its own pidfd. As a subreaper the keeper would inherit
strangers, namely whatever a guest's process ever forked, and would have to wait for "any child"
to be rid of them, for no gain: after the keeper's own death its children go to init either way.
"""
