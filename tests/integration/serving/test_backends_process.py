"""One real server process for each form of a network: it answers as MLflow does and imports no MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from mlflow_deploy.bundle import Bundle
from mlflow_deploy.errors import MissingExtra
from mlflow_deploy.serving.backends.base import load_model
from mlflow_deploy.settings import ServingSettings
from tests.integration.conversion.attempts import same
from tests.integration.serving.bundles import network_bundles
from tests.integration.serving.running import ROOT, free_port

JSON = {"Content-Type": "application/json"}

FORMS = {
    "torchscript": ("torch", {"torch"}),
    "torch_export": ("torch", {"torch"}),
    # TensorFlow imports pandas and what comes with it where it is installed, which is in no image of this form.
    "savedmodel": ("keras", {"tensorflow", "pandas", "pyarrow", "requests"}),
    "tflite": ("keras", set()),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return network_bundles(
        tmp_path_factory.mktemp("forms"), {form: framework for form, (framework, _) in FORMS.items()}
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_server_of_its_own_answers_the_example(
    form: str, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    bundle, port = bundles[form], free_port()
    script = tmp_path / "check.py"
    script.write_text(
        "import sys\n"
        "from mlflow_deploy.serving import server\n"
        "load = server._load\n"
        "def after(worker):\n"
        "    load(worker)\n"
        "    heavy = set('mlflow pandas pydantic requests torch tensorflow pyarrow'.split())\n"
        "    print('HEAVY', *sorted(heavy & set(sys.modules)), flush=True)\n"
        "server._load = after\n"
        "from mlflow_deploy.serving.__main__ import main\n"
        f"sys.exit(main(['--bundle', {os.fspath(bundle.path)!r}, '--port', '{port}', '--listen-when-ready']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = next(text for text in process.stdout if text.startswith(b"HEAVY"))
        example = bundle.document("example.json")
        assert example is not None
        answer = _post(f"http://127.0.0.1:{port}/invocations", example["request"])
        same(answer["predictions"], example["predictions"])
        inputs = example["request"]["inputs"]
        single = _post(f"http://127.0.0.1:{port}/invocations", {"inputs": inputs[:1]})
        same(single["predictions"], example["predictions"][:1])
        refused = httpx.post(
            f"http://127.0.0.1:{port}/invocations",
            content=b'{"inputs": [[NaN, 0, 0, 0, 0, 0]]}',
            headers=JSON,
            timeout=120,
        )
        assert refused.status_code in (400, 422)
        assert "does not take missing values" in refused.text
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
    loaded = set(line.decode().split()[1:])
    assert loaded <= FORMS[form][1]
    assert "mlflow" not in loaded


def _post(url: str, document: object) -> dict[str, object]:
    """The answer; the server listens a moment after it has loaded."""
    end = time.monotonic() + 20
    while True:
        try:
            response = httpx.post(url, json=document, timeout=60)
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)
            continue
        assert response.status_code == 200, response.text
        return dict(response.json())


@pytest.mark.parametrize(
    ("form", "module", "extra"),
    [
        ("torchscript", "torch", "torch"),
        ("torch_export", "torch", "torch"),
        ("savedmodel", "tensorflow", "tensorflow"),
        ("tflite", "ai_edge_litert.interpreter", "tflite"),
    ],
)
def test_a_missing_library_names_its_extra(
    form: str, module: str, extra: str, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingExtra, match=rf'pip install "mlflow-deploy\[{extra}\]"'):
        load_model(bundles[form], ServingSettings())


def test_calls_from_several_threads_do_not_mix(bundles: dict[str, Bundle]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import msgspec

    for form in ("tflite", "torchscript"):
        model = load_model(bundles[form], ServingSettings(threads=4))
        rows = [[0.1 * index] * 6 for index in range(40)]

        def ask(row: list[float], model: object = model) -> bytes:
            body = msgspec.json.encode({"inputs": [row]})
            return model.to_json(model.run(model.parse_json(body)))  # type: ignore[attr-defined]

        alone = [ask(row) for row in rows]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, rows)) == alone
