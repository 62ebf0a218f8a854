# Finds what is missing on this machine and installs it. Sourced by ./quickstart and ./check.
# Debian 12 and 13 and Ubuntu 24.04: through apt, after saying what. Elsewhere: names the packages.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# What the house runs on, and what its tests need beside that.
RUN_PACKAGES="qemu-system-x86 qemu-utils ovmf mmdebstrap uidmap mtools e2fsprogs cpio xz-utils zstd python3-venv debian-archive-keyring iproute2 nftables dnsmasq-base slirp4netns"
CHECK_PACKAGES="git curl openssh-client busybox-static grub-rescue-pc binutils socat procps bash-completion zsh fish sshfs"

os_family() {
  # shellcheck disable=SC1091
  ( . /etc/os-release 2>/dev/null || exit 0
    case "${ID:-}:${VERSION_ID:-}" in
      debian:12*|debian:13*|ubuntu:24.04|ubuntu:24.10|ubuntu:25.*|ubuntu:26.*) echo apt ;;
      debian:*) [ -z "${VERSION_ID:-}" ] && echo apt ;;   # testing and sid have no number
    esac )
}

as_root() {  # runs a command as root, by sudo where needed, and says so
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then say "  (asking sudo for: $*)"; sudo "$@"
  else fail "root is needed for: $*  -- run it as root, then this script again."
  fi
}

missing_packages() {
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s ' "$package"
  done
}

install_packages() {
  if [ "$(os_family)" != apt ]; then
    local absent=""
    for tool in qemu-system-x86_64 qemu-img mmdebstrap newuidmap mformat mke2fs xz zstd; do
      command -v "$tool" >/dev/null || [ -x "/usr/sbin/$tool" ] || absent="$absent $tool"
    done
    [ -z "$absent" ] && return 0
    fail "this system is not one that I can install packages on. Missing programs:$absent
  On Debian they come from: $*
  On Fedora: qemu-system-x86 qemu-img edk2-ovmf mmdebstrap shadow-utils mtools e2fsprogs debian-keyring
  On Arch: qemu-base qemu-img edk2-ovmf mmdebstrap shadow mtools e2fsprogs debian-archive-keyring
  Install them, then run this script again."
  fi
  local missing
  missing=$(missing_packages "$@")
  [ -z "$missing" ] && return 0
  say "Installing from your distribution: $missing"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null \
    || fail "apt could not install: $missing"
}

find_python() {  # the distribution's own Python first: it is there for every user of the machine
  for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"; return 0
    fi
  done
  return 1
}

make_venv() {  # $1: run or dev. Safe to run again; rebuilt only when the lock file changed.
  local lock="requirements/$1.txt" python stamp
  python=$(find_python) || fail "Python 3.11 or newer with venv is needed."
  stamp="$1 $(cat "$lock" pyproject.toml | sha256sum | cut -c1-16) $("$python" -V)"
  [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ] && return 0
  if [ "$1" = run ] && grep -q "^dev " .venv/.stamp 2>/dev/null &&
     [ "$(cat .venv/.stamp)" = "dev $(cat requirements/dev.txt pyproject.toml | sha256sum | cut -c1-16) $("$python" -V)" ]; then
    return 0  # the larger set is there already
  fi
  say "Installing Python packages into .venv (locked with hashes)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r "$lock" \
    || fail "pip could not install the locked packages."
  # compat: a plain path entry instead of an import hook, which would slow every start of `guest`.
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e . || fail "pip could not install guesthouse itself."
  printf '%s' "$stamp" > .venv/.stamp
}
