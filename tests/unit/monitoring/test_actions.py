"""What follows from verdicts: messages once, grouped, recovered; actions with cool-down and limit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy.config_monitor import ActionSpec, AlertSpec
from mlflow_deploy.errors import DeploymentBusy
from mlflow_deploy.monitoring.action_requests import ActionRequest
from mlflow_deploy.monitoring.actions import after_window, work_off
from mlflow_deploy.monitoring.alert_state import read_state
from mlflow_deploy.monitoring.results import WindowResult

HOUR = 3600.0
DAY = "2013-07-{:02d}T{:02d}:00:00+00:00"


def result(hour: int, state: str, *, kind: str = "drift", number: int = 1, **more: Any) -> WindowResult:
    return WindowResult(
        deployment="flights",
        revision=more.pop("revision", 1),
        kind=kind,  # type: ignore[arg-type]
        start=DAY.format(1 + hour // 24, hour % 24),
        end=DAY.format(1 + (hour + 1) // 24, (hour + 1) % 24),
        rows=1000,
        state=state,  # type: ignore[arg-type]
        summary=f"{kind} {state} at {hour}",
        finished_at=DAY.format(9, 0),
        number=number,
        **more,
    )


class Desk:
    """The alerts of one deployment, with messages that a program writes into a file."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.told = folder / "told.jsonl"
        program = f"import sys; open({str(self.told)!r}, 'a').write(sys.stdin.read() + chr(10))"
        self.command = f'{sys.executable} -c "{program}"'
        action = {key: settings.pop(key) for key in list(settings) if key in ActionSpec.model_fields}
        self.action = ActionSpec.model_validate(action)
        self.alert = AlertSpec.model_validate({"command": self.command, "group_seconds": 0, **settings})
        self.asked: list[ActionRequest] = []
        self.now = 0.0

    def see(self, *results: WindowResult) -> None:
        for each in results:
            after_window(self.folder, each, self.alert, self.action, now=self.now)

    def work(self) -> list[dict[str, Any]]:
        """What was told now."""
        before = len(self.messages())
        work_off(self.folder, "flights", self.alert, self.action, act=self.act, now=lambda: self.now)
        return self.messages()[before:]

    def act(self, request: ActionRequest) -> str:
        self.asked.append(request)
        return "done it"

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.told.read_text().splitlines()] if self.told.exists() else []

    def done(self) -> list[tuple[str, str]]:
        return [(request.action, request.phase) for request in self.asked]


def test_an_alert_is_told_once_and_its_end_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    columns = {"temp": {"statistic": 0.4, "drifted": 1.0}, "origin": {"statistic": 0.01, "drifted": 0.0}}
    desk.see(result(0, "ok"), result(1, "alert", columns=columns), result(2, "alert"))
    (message,) = desk.work()
    (notice,) = message["notices"]
    assert (message["status"], notice["columns"], notice["since"]) == (
        "firing",
        {"temp": 0.4},
        DAY.format(1, 1),
    )
    desk.see(result(3, "alert"), result(1, "alert"), result(4, "not_enough_data"), result(5, "no_reference"))
    assert desk.work() == []
    desk.see(result(6, "ok"))
    (message,) = desk.work()
    assert (message["status"], message["notices"][0]["since"]) == ("recovered", DAY.format(1, 1))
    assert desk.work() == []
    # The history of the deployment gets the beginning and the end.
    assert [(request.action, request.phase) for request in desk.asked] == [("notify", "note")] * 2


def test_monitors_share_a_message_and_what_is_over_before_it_is_sent_is_not_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, group_seconds=30)
    desk.see(result(1, "alert"), result(1, "alert", kind="performance"))
    assert desk.work() == []
    desk.now = 31
    (message,) = desk.work()
    assert [notice["monitor"] for notice in message["notices"]] == ["drift", "performance"]
    desk.see(result(2, "alert", revision=2), result(3, "ok", revision=2))
    desk.now = 100
    assert desk.work() == []


def test_a_window_without_a_verdict_resolves_nothing_and_a_broken_monitor_is_told_apart(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    desk.see(result(1, "alert"))
    desk.work()
    desk.see(result(2, "error"))
    (message,) = desk.work()
    assert [(notice["topic"], notice["status"]) for notice in message["notices"]] == [("health", "firing")]
    desk.see(result(3, "alert"))
    (message,) = desk.work()
    assert [(notice["topic"], notice["status"]) for notice in message["notices"]] == [("health", "recovered")]


def test_labels_that_come_late_change_the_verdict_of_their_window(tmp_path: Path) -> None:
    desk = Desk(tmp_path, performance="notify,rollback", after_windows=2)
    kind = "performance"
    desk.see(*(result(hour, "not_enough_data", kind=kind) for hour in range(5)))
    assert desk.work() == []
    desk.see(result(1, "alert", kind=kind, number=2))
    assert [message["status"] for message in desk.work()] == ["firing"]
    # The same window judged a third time is no second window.
    desk.see(result(1, "alert", kind=kind, number=3))
    desk.work()
    assert ("rollback", "do") not in desk.done()
    # An earlier window is no news, a later one is.
    desk.see(result(0, "ok", kind=kind, number=2))
    assert desk.work() == []
    desk.see(result(2, "alert", kind=kind, number=2))
    desk.work()
    assert desk.done().count(("rollback", "do")) == 1


def test_warnings_are_told_when_asked_for_and_alerts_again_after_a_day(tmp_path: Path) -> None:
    quiet, loud = Desk(tmp_path / "quiet"), Desk(tmp_path / "loud", level="warning")
    for desk in (quiet, loud):
        desk.folder.mkdir()
        desk.see(result(1, "warning"))
    assert (quiet.work(), len(loud.work())) == ([], 1)
    loud.see(result(2, "alert"))
    assert [message["notices"][0]["level"] for message in loud.work()] == ["alert"]
    loud.now = 23 * HOUR
    loud.see(result(3, "alert"))
    assert loud.work() == []
    loud.now = 25 * HOUR
    loud.see(result(4, "alert"))
    (message,) = loud.work()
    assert message["notices"][0]["again"]


def test_what_is_not_delivered_is_tried_again_after_a_restart_with_the_same_id(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    broken = desk.alert.model_copy(update={"command": f'{sys.executable} -c "import sys; sys.exit(3)"'})
    good, desk.alert = desk.alert, broken
    desk.see(result(1, "alert"))
    desk.work()
    (delivery,) = read_state(tmp_path).deliveries
    assert (delivery.attempts, delivery.error) == (1, "the command ended with status 3")
    desk.alert = good
    assert desk.work() == [], "before its time"
    desk.now = 6
    (message,) = desk.work()
    assert message["id"] == delivery.message.id
    assert read_state(tmp_path).deliveries == []


def test_a_message_is_given_up_after_its_time(tmp_path: Path) -> None:
    desk = Desk(tmp_path, give_up_hours=1)
    desk.alert = desk.alert.model_copy(update={"command": "/nowhere"})
    desk.see(result(1, "alert"))
    for desk.now in (0, HOUR / 2, HOUR + 1):
        desk.work()
    state = read_state(tmp_path)
    assert (state.deliveries, state.failed, state.delivered) == ([], 1, 0)


def test_actions_wait_for_several_windows_and_keep_cool_down_and_limit(tmp_path: Path) -> None:
    desk = Desk(tmp_path, drift="notify,rollback", after_windows=2, cooldown_hours=24, limit=2, limit_days=7)
    desk.see(result(1, "alert"))
    desk.work()
    assert ("rollback", "do") not in desk.done()
    desk.see(result(2, "alert"))
    desk.work()
    # Carried out, then written into the history in a later round.
    desk.work()
    assert desk.done() == [("notify", "note"), ("rollback", "do"), ("rollback", "note")]
    assert desk.asked[-1].detail == "done it"
    for hours, count in ((12, 1), (25, 2), (50, 2), (24 * 9, 3)):
        desk.now = hours * HOUR
        desk.see(result(2 + hours, "alert"))
        desk.work()
        assert desk.done().count(("rollback", "do")) == count, hours
    skipped = [entry.detail for entry in read_state(tmp_path).actions if entry.state == "skipped"]
    assert [detail.split()[2:5] for detail in skipped] == [["taken", "less", "than"], ["taken", "2", "times"]]


def test_an_action_that_cannot_be_done_now_is_tried_again_and_its_note_waits(tmp_path: Path) -> None:
    desk = Desk(tmp_path, drift="rollback", after_windows=1)
    busy = True

    def act(request: ActionRequest) -> str:
        if busy:
            raise DeploymentBusy(request.deployment, "process 1")
        return desk.act(request)

    def work(now: float) -> None:
        work_off(tmp_path, "flights", desk.alert, desk.action, act=act, now=lambda: now)

    desk.see(result(1, "alert"))
    work(0)
    work(1)
    assert read_state(tmp_path).actions[0].attempts == 1
    busy = False
    work(6)
    busy = True
    work(7)
    busy = False
    work(100)
    assert desk.done() == [("rollback", "do"), ("rollback", "note")]
    assert read_state(tmp_path).actions[0].state == "done"


def test_without_anybody_who_acts_actions_stay_wanted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, drift="rollback", after_windows=1)
    desk.see(result(1, "alert"))
    work_off(tmp_path, "flights", desk.alert, desk.action, act=None, now=lambda: 0.0)
    (entry,) = read_state(tmp_path).actions
    assert (entry.action, entry.state, entry.carried_out) == ("rollback", "wanted", False)


@pytest.mark.parametrize(
    "settings",
    [
        {"webhook": "https://user:secret@host/"},
        {"slack": "https://hooks.slack.com/services/T/B/secret"},
        {"webhook_secret": "plain"},
        {"smtp_user": "me", "smtp_security": "none"},
    ],
)
def test_secrets_are_refused_in_settings_that_the_record_shows(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AlertSpec.model_validate(settings)


def test_retrain_needs_a_project() -> None:
    with pytest.raises(ValueError, match="retrain_project"):
        ActionSpec.model_validate({"drift": "retrain"})
