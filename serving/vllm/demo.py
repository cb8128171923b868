"""`make serve-demo`: start vLLM's OpenAI server with tiny-qwen, ask it dense and pruned, print tokens and answers."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the tests' checkpoints and client

POLICY = {"method": "div_prune", "keep_ratio": 0.25}
QUESTION = "What is in the picture?"
ASKED = {
    "dense (null)": None,
    "engine's policy": "engine",
    "keep_ratio 0.1": {"keep_ratio": 0.1},
    "pixel_redundancy": {"method": "pixel_redundancy"},
}


def main() -> None:
    from tests.checkpoints import checkpoint
    from tests.servers import ask, serving
    from vlmopt.synthetic import scene

    # vLLM's own switches: a small cache of keys and values, quiet.
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint("tiny_qwen", Path(folder))
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
            "--block-size", "32", "--trust-request-mm-kwargs",
            "--mm-processor-kwargs", json.dumps({"vlmopt": POLICY}),
        ]  # fmt: skip
        image = scene(777_000_001, (280, 196)).image
        with serving(*command) as client:
            print(f"\n{QUESTION!r}, asked with an engine started with {json.dumps(POLICY)}:")
            for name, policy in ASKED.items():
                said = ask(client, image, policy)
                print(f"{name:18} {said.usage.prompt_tokens:4} prompt tokens   {said.choices[0].message.content!r}")


if __name__ == "__main__":
    main()
