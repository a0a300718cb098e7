"""Automations of the Prefect server: crash silent runs, notify of bad nights, score announced batches."""

import datetime
import hashlib
import json
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

# Our events, whose resource is BATCH.ID; deploy/README.md shows how another program announces a batch.
BATCH = "nightlabel.batch"
BATCH_READY = f"{BATCH}.ready"
BATCH_HELD = f"{BATCH}.held"

SILENCE = datetime.timedelta(seconds=90)  # three heartbeats
REPEATS = datetime.timedelta(minutes=10)  # within which a run's end is notified once
RERUN_HINT = "Run it again: parts that are labelled already are skipped."
END_STATES = ("Completed", "Failed", "Cancelled", "Crashed")
FAILED_STATES = ("Failed", "Crashed", "TimedOut")

# Posted to the webhook: JSON whose `text` chat programs show as it is. Prefect renders the templates.
END_PAYLOAD = """{
  "text": {{ (flow_run.name ~ ": " ~ flow_run.state.name ~ ". " ~ (flow_run.state.message or "")) | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "run": {{ flow_run.name | tojson }},
  "url": {{ (flow_run | ui_url) | tojson }}
}"""
HELD_PAYLOAD = """{
  "text": {{ event.payload.text | tojson }},
  "state": "Held",
  "run": {{ event.payload.run | tojson }},
  "url": {{ event.payload.url | tojson }}
}"""


def crash_silent_runs() -> AutomationCore:
    """Return the automation that marks a run as crashed when its heartbeats stop: its process was killed."""
    return _automation(
        "nightlabel: crash runs that fell silent",
        "Without this, a run whose process was killed stays Running.",
        EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in END_STATES)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        ChangeFlowRunState(
            name=None,
            state=StateType.CRASHED,
            force=False,
            message=f"The process of this run is gone: killed, or its machine went down. {RERUN_HINT}",
        ),
    )


def notify_failed_runs(webhook: UUID) -> AutomationCore:
    """Return the automation that notifies a webhook of failed and crashed deployment runs, without their subflows.

    Args:
        webhook: id of the block with the URL.
    """
    return _automation(
        "nightlabel: tell of runs that failed",
        "Only runs of deployments: not subflows, and not runs from a shell.",
        EventTrigger(
            expect={f"prefect.flow-run.{end}" for end in FAILED_STATES},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["deployment"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=REPEATS,  # with a busy database a client may report the same end several times
        ),
        CallWebhook(block_document_id=webhook, payload=END_PAYLOAD),
    )


def notify_held_batches(webhook: UUID) -> AutomationCore:
    """Return the automation that notifies a webhook of each held batch.

    Args:
        webhook: id of the block with the URL.
    """
    return _automation(
        "nightlabel: tell of batches that are held",
        "Their labels are published after a person has looked.",
        _batch_trigger(BATCH_HELD),
        CallWebhook(block_document_id=webhook, payload=HELD_PAYLOAD),
    )


def label_announced_batches(score: UUID) -> AutomationCore:
    """Return the automation that scores an announced batch.

    Args:
        score: id of the deployment.
    """
    return _automation(
        "nightlabel: label batches that are announced",
        f"The event {BATCH_READY} starts the scoring of its batch.",
        _batch_trigger(BATCH_READY),
        RunDeployment(
            source="selected",
            deployment_id=score,
            job_variables=None,
            parameters={
                "batches": _filled(f'[{{{{ event.resource.id.removeprefix("{BATCH}.") | tojson }}}}]'),
                "workspace": _filled('{{ event.payload.workspace | default("") | tojson }}'),
            },
        ),
    )


def _filled(template: str) -> dict[str, Any]:
    """Return a parameter that Prefect renders from the event: a JSON template."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _batch_trigger(event: str) -> EventTrigger:
    return EventTrigger(
        expect={event},
        match=ResourceSpecification({"prefect.resource.id": [f"{BATCH}.*"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=datetime.timedelta(0),
    )


def _stable(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _automation(name: str, description: str, trigger: EventTrigger, action: ActionTypes) -> AutomationCore:
    """Return an automation with a digest of its definition as a tag, to detect changes."""
    bare = AutomationCore(name=name, description=description, trigger=trigger, actions=[action])
    # As Python values: in JSON a set is a list, whose order differs from process to process.
    text = json.dumps(bare.model_dump(), sort_keys=True, default=_stable)
    return bare.model_copy(update={"tags": ["nightlabel", hashlib.sha256(text.encode()).hexdigest()[:12]]})
