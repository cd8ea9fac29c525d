"""Messages over each channel to real receivers on loopback."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.config_monitor import AlertSpec
from mlflow_deploy.monitoring.alert_state import Message, Notice
from mlflow_deploy.monitoring.notify import NotDeliveredError, send, subject, text

NOTICE = Notice(
    status="firing",
    level="alert",
    revision=3,
    monitor="drift",
    topic="verdict",
    summary="9 of 16 columns drifted <now> & here",
    reasons=("temp moved",),
    window_start="2013-07-01T00:00:00+00:00",
    window_end="2013-08-01T00:00:00+00:00",
    since="2013-06-01T00:00:00+00:00",
    columns={"temp": 0.412},
)
MESSAGE = Message(id="0f" * 16, deployment="flights", at="2013-08-01T00:01:00+00:00", notices=(NOTICE,))
NOW = 1_375_315_260.0


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A web server that keeps what it gets and answers with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.path, dict(self.headers), body))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        got: list[tuple[str, dict[str, str], bytes]] = []  # noqa: RUF012
        status = 200

    server = Server(("127.0.0.1", 0), Handler)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(receiver: Any) -> str:
    return f"http://127.0.0.1:{receiver.server_address[1]}"


def test_a_webhook_is_signed_with_its_time_as_mlflow_signs(
    receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    monkeypatch.setenv("HOOK_SECRET", "the secret")
    alert = AlertSpec(webhook=url(receiver) + "/x", webhook_secret="env:HOOK_SECRET")
    send("webhook", MESSAGE, alert, now=NOW)
    send("webhook", MESSAGE, alert, now=NOW + 1)
    (path, headers, body), (_, later, _) = receiver.got
    assert path == "/x"
    assert headers["X-MLflow-Timestamp"] == "1375315260"
    assert headers["X-MLflow-Signature"] == _generate_hmac_signature(
        "the secret", MESSAGE.id, "1375315260", body.decode()
    )
    assert headers["X-MLflow-Delivery-Id"] == later["X-MLflow-Delivery-Id"] == MESSAGE.id
    assert headers["X-MLflow-Signature"] != later["X-MLflow-Signature"]
    document = json.loads(body)
    assert (document["status"], document["notices"][0]["columns"]) == ("firing", {"temp": 0.412})


def test_slack_gets_text_that_is_no_markup(
    receiver: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "url").write_text(url(receiver) + "/services/T0/B0/token\n")
    send("slack", MESSAGE, AlertSpec(slack=f"file:{tmp_path}/url"), now=NOW)
    ((path, _, body),) = receiver.got
    assert path == "/services/T0/B0/token"
    assert json.loads(body).keys() == {"text"}
    assert "9 of 16 columns drifted &lt;now&gt; &amp; here" in json.loads(body)["text"]


@pytest.mark.parametrize("status", [302, 404, 429, 503])
def test_another_answer_than_success_is_no_delivery(receiver: Any, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotDeliveredError, match=str(status)):
        send("webhook", MESSAGE, AlertSpec(webhook=url(receiver)), now=NOW)


def test_errors_and_logs_tell_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_deploy")
    monkeypatch.setenv("HOOK", "http://127.0.0.1:1/services/token-of-slack")
    with pytest.raises(NotDeliveredError) as error:
        send("slack", MESSAGE, AlertSpec(slack="env:HOOK"), now=NOW)
    assert "token-of-slack" not in str(error.value) + caplog.text
    assert error.value.__suppress_context__
    with pytest.raises(NotDeliveredError, match="NOT_THERE is not set"):
        send("slack", MESSAGE, AlertSpec(slack="env:NOT_THERE"), now=NOW)
    with pytest.raises(NotDeliveredError, match="/not/there cannot be read"):
        send("slack", MESSAGE, AlertSpec(slack="file:/not/there"), now=NOW)


def test_a_command_gets_the_message_and_its_failure_is_no_delivery(tmp_path: Path) -> None:
    send("command", MESSAGE, AlertSpec(command=f"tee {tmp_path}/told"), now=NOW)
    assert json.loads((tmp_path / "told").read_text())["id"] == MESSAGE.id
    for command in ("false", "/not/there", "'unfinished"):
        with pytest.raises(NotDeliveredError, match="command"):
            send("command", MESSAGE, AlertSpec(command=command), now=NOW)


class Post:
    """Keeps mails, and the names that logged in."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.users: list[tuple[bytes, bytes]] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key, which is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(params=["none", "starttls", "tls"])
def post(request: pytest.FixtureRequest, certificate: Path) -> Iterator[tuple[str, int, Post]]:
    """(protection, port, what came) of a mail server; with TLS it wants a login."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult

    kept = Post()
    settings: dict[str, Any] = {}
    if request.param != "none":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

        def login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> Any:
            kept.users.append((data.login, data.password))
            return AuthResult(success=data.password == b"the password", handled=False)

        settings = {"authenticator": login, "auth_required": True}
        if request.param == "starttls":
            settings |= {"tls_context": context, "require_starttls": True}
        else:
            # It takes a connection that is TLS from its first byte for one without.
            settings |= {"ssl_context": context, "auth_require_tls": False}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(kept, hostname="127.0.0.1", port=port, **settings)
    controller.start()
    yield request.param, port, kept
    controller.stop()


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_mail(
    post: tuple[str, int, Post], certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protection, port, kept = post
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    (tmp_path / "password").write_text("the password\n")
    settings: dict[str, Any] = {"email": "a@example.com,b@example.com", "smtp": f"localhost:{port}"}
    settings["smtp_security"] = protection
    if protection != "none":
        settings |= {"smtp_user": "monitor", "smtp_password": f"file:{tmp_path}/password"}
    send("email", MESSAGE, AlertSpec.model_validate(settings), now=NOW)
    ((to, mail),) = kept.mails
    assert to == ["a@example.com", "b@example.com"]
    assert mail["Subject"] == subject(MESSAGE) == "[ALERT] flights: drift"
    assert mail["Message-ID"] == f"<{MESSAGE.id}@mlflow-deploy>"
    assert mail.get_content().splitlines() == text(MESSAGE).splitlines()
    assert kept.users == ([(b"monitor", b"the password")] if protection != "none" else [])
    if protection != "none":
        (tmp_path / "password").write_text("wrong")
        with pytest.raises(NotDeliveredError, match="535"):
            send("email", MESSAGE, AlertSpec.model_validate(settings), now=NOW)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(NotDeliveredError, match="SSL"):
            send("email", MESSAGE, AlertSpec.model_validate(settings), now=NOW)
