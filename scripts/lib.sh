# shellcheck shell=bash
# What scripts/quickstart and scripts/test have in common: find a Python, install what is missing, keep a virtual environment.
#
# Nothing here is done twice: packages are asked for only when the thing they bring is not there, and the virtual
# environment carries a stamp of what it was made from. Sourced, never run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=""  # set by find_python
VENV=""    # set by prepare_venv
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PATH="$PATH:/usr/sbin:/sbin" # not in a normal user's PATH, and mkfs and ldconfig are there

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Run a command as root: directly, or through sudo. Returns 125 when neither is possible.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && [ -t 0 ]; then
        sudo "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 125
    fi
}

# Install Debian packages, or say which ones somebody else has to install.
apt_install() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these are missing and there is no apt-get to install them: $* (names as in Debian; install what your system calls them)."
    say "installing with apt-get: $*"
    local status=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >/dev/null || status=$?
    [ "$status" != 125 ] || die "these packages are missing and this user may not install them; as root: apt-get install -y $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@" >/dev/null ||
        die "apt-get could not install these packages: $* (its message is above)."
}

# Does this command start a Python that is new enough? (A pyenv shim exists for versions that are not chosen, too.)
is_new_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do
        if is_new_python "$candidate"; then
            # The one behind a virtual environment: ours may be the first in PATH.
            PYTHON="$("$candidate" -c 'import sys; print("%s/bin/python%d.%d" % (sys.base_prefix, *sys.version_info[:2]))')"
            return 0
        fi
    done
    return 1
}

# An older Debian or Ubuntu has a new Python under its full name, if it has one.
install_python() {
    local version
    for version in 3.13 3.12 3.11; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            apt_install "python$version" "python$version-venv" "python$version-dev"
            return 0
        fi
    done
    return 1
}

# The Debian package that brings $1 (venv, dev) for the Python that was found.
python_package() {
    if [ "$PYTHON" = "$(readlink -f /usr/bin/python3 2>/dev/null)" ] || [ "$PYTHON" = /usr/bin/python3 ]; then
        echo "python3-$1"
    else
        echo "python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$1"
    fi
}

# Everything outside Python that FlakeFS needs; further packages as "command:package".
prepare_system() {
    local packages=() need
    [ "$(uname -s)" = Linux ] || die "FlakeFS mounts need Linux; this is $(uname -s)."
    if [ "$(uname -m)" != x86_64 ] && ! command -v mongod >/dev/null; then
        die "the MongoDB that comes from PyPI is for x86-64 only, this is $(uname -m): put a mongod (6.0 or newer) into PATH first."
    fi
    if ! find_python; then
        { install_python && find_python; } ||
            die "no Python 3.11 or newer was found and this system's packages have none: install one and run this again."
    fi
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || packages+=("$(python_package venv)")
    "$PYTHON" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        packages+=("$(python_package dev)")
    for need in fusermount3:fuse3 pkg-config:pkg-config gcc:gcc "$@"; do
        command -v "${need%%:*}" >/dev/null || packages+=("${need##*:}")
    done
    pkg-config --exists fuse3 2>/dev/null || packages+=(libfuse3-dev)
    # The mongod from PyPI is linked against it, and a minimal system does not have it.
    command -v mongod >/dev/null || has_library libcurl.so.4 || packages+=(libcurl4)
    apt_install "${packages[@]}"
}

has_library() { ldconfig -p 2>/dev/null | grep -qF "$1"; }

# May this user mount?
check_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "there is no /dev/fuse: load the kernel module fuse, or start the container with --device /dev/fuse --cap-add SYS_ADMIN."
    # shellcheck disable=SC2015  # the redirection itself is the test
    { : <>/dev/fuse; } 2>/dev/null || die "this user may not open /dev/fuse: make it readable and writable for this user, or run this as root."
}

# What the environment is made from: when this changes, pip runs again.
venv_stamp() {
    echo "$ROOT $1 $PYTHON $("$PYTHON" --version 2>&1)"
    cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt"
    [ -w "$ROOT" ] || find "$ROOT/flakefs" -name '*.py' -type f -exec cat {} +
}

venv_is_current() {
    [ -x "$1/bin/flakefs" ] && [ -r "$1/flakefs.stamp" ] && [ "$(cat "$1/flakefs.stamp")" = "$2" ] &&
        "$1/bin/python" -c 'import pyfuse3, pymongo, flakefs' 2>/dev/null
}

# A virtual environment with FlakeFS and these extras: in the checkout when we may write there, else in the user's data folder.
prepare_venv() {
    local extras="$1" stamp
    stamp="$(venv_stamp "$extras" | sha256sum)"
    VENV="${FLAKEFS_VENV:-$ROOT/.venv}"
    if [ -z "${FLAKEFS_VENV:-}" ] && ! { [ -w "$ROOT" ] && { [ ! -e "$VENV" ] || [ -w "$VENV" ]; }; } && ! venv_is_current "$VENV" "$stamp"; then
        VENV="${XDG_DATA_HOME:-$HOME/.local/share}/flakefs-venv"
    fi
    mkdir -p "$(dirname "$VENV")"
    exec 9<"$(dirname "$VENV")"
    flock 9 # two of these scripts at once take turns
    if ! venv_is_current "$VENV" "$stamp"; then
        make_venv "$extras"
        echo "$stamp" >"$VENV/flakefs.stamp"
    fi
    exec 9<&-
}

make_venv() {
    local extras="$1"
    say "installing FlakeFS [$extras] and the Python packages it needs into $VENV (this takes a minute)"
    rm -f "$VENV/flakefs.stamp"
    "$VENV/bin/python" -c 'import pip' 2>/dev/null || "$PYTHON" -m venv --clear "$VENV" ||
        die "$PYTHON could not make a virtual environment in $VENV (its message is above)."
    if [ -w "$ROOT" ]; then
        pip_install -e "${ROOT}[$extras]"
    else
        local copy # a build leaves files beside the sources, which are not ours to write to
        copy="$(mktemp -d)"
        cp -r "$ROOT"/{pyproject.toml,README.md,LICENSE,flakefs} "$copy"
        pip_install --force-reinstall "${copy}[$extras]"
        rm -r "$copy"
    fi
}

pip_install() {
    local log="$VENV/pip.log"
    if "$VENV/bin/pip" install -q -c "$ROOT/constraints.txt" "$@" >"$log" 2>&1; then return 0; fi
    say "the versions in constraints.txt cannot all be had here; trying the ranges of pyproject.toml"
    if "$VENV/bin/pip" install -q "$@" >>"$log" 2>&1; then return 0; fi
    cat "$log" >&2
    die "pip could not install what FlakeFS needs (its messages are above and in $log)."
}
