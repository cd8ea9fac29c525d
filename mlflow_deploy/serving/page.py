"""The human page of a server: what the model is, and a form to try it. It loads nothing from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

from mlflow_deploy.serving.signature import Signature
from mlflow_deploy.serving.worker import Worker

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ margin-bottom: 0 }} .sub {{ color: #57606a; margin-top: 0 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ text-align: left; padding: .2rem 1.2rem .2rem 0 }}
tr + tr {{ border-top: 1px solid #d8dee4 }}
textarea {{ width: 100%; height: 12rem; font: 13px/1.4 ui-monospace, monospace; box-sizing: border-box }}
pre {{ background: #f6f8fa; padding: .8rem; overflow: auto; white-space: pre-wrap }}
button {{ font: inherit; padding: .3rem 1.2rem }} code {{ font: 13px ui-monospace, monospace }}
</style></head><body>
<h1>{title}</h1><p class="sub">{subtitle}</p>
<table>{facts}</table>
<h2>Inputs</h2><table><tr><th>name</th><th>type</th><th>required</th></tr>{inputs}</table>
<h2>Try it</h2>
<form id="try"><textarea id="body" spellcheck="false" aria-label="Request body">{example}</textarea>
<p><label>Token <input id="token" type="password" autocomplete="off" placeholder="only if asked for"></label>
<button>Predict</button> <span id="took"></span></p></form>
<pre id="answer" aria-live="polite"></pre>
<h2>Addresses</h2>
<p><code>POST /invocations</code> MLflow's scoring protocol,
<code>POST /v2/models/{name}/infer</code> Open Inference Protocol,
<a href="/openapi.json"><code>/openapi.json</code></a>,
<a href="/metrics"><code>/metrics</code></a>,
<a href="/version"><code>/version</code></a>, <a href="/ping"><code>/ping</code></a></p>
<script>
document.getElementById("try").addEventListener("submit", async (event) => {{
  event.preventDefault();
  const headers = {{"content-type": "application/json"}};
  const token = document.getElementById("token").value;
  if (token) headers.authorization = "Bearer " + token;
  const begun = performance.now();
  const body = document.getElementById("body").value;
  const answer = await fetch("/invocations", {{method: "POST", headers, body}});
  const text = await answer.text();
  document.getElementById("took").textContent =
    answer.status + " in " + (performance.now() - begun).toFixed(1) + " ms, request " +
    answer.headers.get("x-request-id");
  document.getElementById("answer").textContent = text;
}});
</script></body></html>
"""


def page(worker: Worker) -> str:
    """The page as HTML."""
    identity = worker.identity
    signature = worker.plane.model.signature if worker.plane is not None else None
    example: Any = (worker.bundle.document("example.json") or {}).get("request", {"inputs": []})
    name = identity["deployment"] or identity["model_name"] or "model"
    facts = {
        "Model": f"{identity['model_name'] or 'not registered'}, version {identity['model_version'] or '-'}",
        "Revision": identity["revision"],
        "Form": identity["format"],
        "Bundle": identity["bundle"],
        "Source": worker.bundle.manifest.model.uri,
    }
    return _PAGE.format(
        title=html.escape(name),
        name=html.escape(name),
        subtitle="ready" if worker.ready else "not ready yet",
        facts="".join(
            f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items()
        ),
        inputs=_inputs(signature),
        example=html.escape(json.dumps(example, indent=1)),
    )


def _inputs(signature: Signature | None) -> str:
    if signature is None:
        return "<tr><td colspan=3>The model has no signature.</td></tr>"
    rows = [(column.name or "(unnamed)", column.type, column.required) for column in signature.columns]
    rows += [(t.name or "(unnamed)", f"{t.dtype} {list(t.shape)}", True) for t in signature.tensors]
    return "".join(
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(kind)}</td>"
        f"<td>{'yes' if required else 'no'}</td></tr>"
        for name, kind, required in rows
    )
