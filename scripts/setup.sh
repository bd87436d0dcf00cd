# Other scripts source this file. `setup REQUIREMENTS_FILE` creates .venv and installs the file, once.
# PYTHON is the interpreter of a new .venv (default python3, 3.11 to 3.14).

setup() {
    local requirements=$1 python=${PYTHON:-python3} stamp sum
    stamp=.venv/.installed-${requirements%.txt}
    sum=$(cat requirements*.txt | cksum)
    # requirements-dev.txt also installs the others.
    if grep -qx "$sum" "$stamp" .venv/.installed-requirements-dev 2>/dev/null; then
        echo "set-up: .venv is up to date"
        return 0
    fi
    local start=$SECONDS
    echo "set-up: installing $requirements into .venv (2 to 10 minutes, once; PyTorch is large)"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        "$python" - <<'PY' || return 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(f'error: Python 3.11 to 3.14 is needed, but {sys.executable} is '
             f'{sys.version.split()[0]}: choose another with PYTHON=...')
PY
        "$python" -m venv --clear .venv || return 1
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" || return 1
    echo "$sum" >"$stamp"
    echo "set-up: done in $((SECONDS - start)) s"
}
