# Other scripts source this file. `setup [EXTRA]` creates .venv and installs requirements.txt and an extra of
# pyproject.toml, once, but not the project itself: what runs is the code in this folder.
# PYTHON is the interpreter of a new .venv (default python3, 3.11 to 3.14).

setup() {
    local extra=${1:-} python=${PYTHON:-python3} stamp sum lines
    stamp=.venv/.installed${extra:+-$extra}
    sum=$(sed -n '/^\[project.optional-dependencies\]/,/^\[/p' pyproject.toml | cat requirements.txt - | cksum)
    # The extra dev contains the others.
    if grep -qx "$sum" "$stamp" .venv/.installed-dev 2>/dev/null; then
        echo "set-up: .venv is up to date"
        return 0
    fi
    local start=$SECONDS
    echo "set-up: installing requirements.txt${extra:+ and the extra $extra} into .venv (2 to 10 minutes, once; PyTorch is large)"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        "$python" - <<'PY' || return 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(f'error: Python 3.11 to 3.14 is needed, but {sys.executable} is '
             f'{sys.version.split()[0]}: choose another with PYTHON=...')
PY
        "$python" -m venv --clear .venv || return 1
    fi
    # shellcheck disable=SC2086 # no extra, no word
    lines=$(.venv/bin/python tools/requirements.py $extra) || return 1
    # All in one call: torch and torchvision have to match.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r <(echo "$lines") || return 1
    echo "$sum" >"$stamp"
    echo "set-up: done in $((SECONDS - start)) s"
}
