#!/usr/bin/env bash
# Measures every table that benchmarks/tables.py writes again on this machine, and writes the pages.
# Hours on two cores; run it on a machine that does nothing else. What is done is skipped when it is called again.
#   benchmarks/run_all.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
mkdir -p benchmarks/results/done

once() {  # NAME COMMAND...: the command, unless it has ended well since the marks were last taken away
    if [ ! -e "benchmarks/results/done/$1" ]; then
        echo "== $1"
        "${@:2}"
        touch "benchmarks/results/done/$1"
    fi
}

once pattern_quality "$python" benchmarks/pattern_quality.py
once sparse_ttft "$python" benchmarks/sparse_ttft.py
once ttft "$python" benchmarks/ttft.py --repeats 11
once scoring_cost "$python" benchmarks/scoring_cost.py
once peers env OMP_NUM_THREADS=1 "$python" benchmarks/peers.py
once correction_cost "$python" benchmarks/correction_cost.py
once "correction_cost 7b" "$python" benchmarks/correction_cost.py --layers 3
once pixel_redundancy "$python" benchmarks/pixel_redundancy.py --repeats 11 \
    --image benchmarks/screens/files-grid-000000-1280x800.png
once grouped_decode env OMP_NUM_THREADS=1 "$python" benchmarks/grouped_decode.py
once "kv_cache speed" env OMP_NUM_THREADS=1 "$python" benchmarks/kv_cache.py --speed
once "sparse_reading speed" env OMP_NUM_THREADS=1 "$python" benchmarks/sparse_reading.py --speed
once "decode_ideas speed" env OMP_NUM_THREADS=1 "$python" benchmarks/decode_ideas_speed.py
for checkpoint in tiny-llava tiny-qwen; do
    once "hallucination decoding $checkpoint" env OMP_NUM_THREADS=1 "$python" benchmarks/hallucination.py --decoding \
        --checkpoint $checkpoint --block 3 --images 400 --polled 400 --splits adversarial --rounds 1
    once "decoding_cost $checkpoint" env OMP_NUM_THREADS=1 "$python" benchmarks/decoding_cost.py --checkpoint $checkpoint
done
once decoding_quality "$python" benchmarks/decoding_quality.py
once estimate env OMP_NUM_THREADS=1 "$python" benchmarks/estimate.py --measured benchmarks/results/done/cpu.json
once "tuning simulated" env OMP_NUM_THREADS=1 "$python" benchmarks/tuning.py --simulate
once "vLLM for CPUs" make PYTHON="$python" .venv-vllm/.installed
once serving .venv-vllm/bin/python benchmarks/serving.py --repeats 11
once "serving videos" .venv-vllm/bin/python benchmarks/serving.py --video --repeats 11
once capacity env OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/capacity.py
"$python" benchmarks/tables.py --write
rm -r benchmarks/results/done
