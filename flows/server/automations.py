"""What a Prefect server does by itself: ends runs that fell silent, tells of bad nights, labels what is announced."""

import datetime
import hashlib
import json
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

# Events of ours; deploy/README.md shows how another program announces a batch. Their resource is BATCH.ID.
BATCH = "nightlabel.batch"
BATCH_READY = f"{BATCH}.ready"
BATCH_HELD = f"{BATCH}.held"

SILENCE = datetime.timedelta(seconds=90)  # three heartbeats
REPEATS = datetime.timedelta(minutes=10)  # within which a run's end is told once
RERUN_HINT = "Run it again: what is labelled already is not done twice."
END_STATES = ("Completed", "Failed", "Cancelled", "Crashed")
FAILED_STATES = ("Failed", "Crashed", "TimedOut")

# What is posted to the webhook: JSON whose `text` chat programs show as it is. Prefect fills the gaps.
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
    """A run whose process was killed cannot say so: it is marked as crashed once its heartbeats stay away."""
    return _automation(
        "nightlabel: crash runs that fell silent",
        "A run whose process is gone would stay Running for ever.",
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
    """A webhook is told of each run of a deployment that failed or crashed; not of the runs inside of it.

    Args:
        webhook: the block that holds its address.
    """
    return _automation(
        "nightlabel: tell of runs that failed",
        "Runs inside of a run, and those from a shell, are not told of.",
        EventTrigger(
            expect={f"prefect.flow-run.{end}" for end in FAILED_STATES},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["deployment"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=REPEATS,  # a busy database can make a client say the same end several times
        ),
        CallWebhook(block_document_id=webhook, payload=END_PAYLOAD),
    )


def notify_held_batches(webhook: UUID) -> AutomationCore:
    """A webhook is told of each batch whose labels are held."""
    return _automation(
        "nightlabel: tell of batches that are held",
        "Their labels are not published before a person has looked.",
        _batch_trigger(BATCH_HELD),
        CallWebhook(block_document_id=webhook, payload=HELD_PAYLOAD),
    )


def label_announced_batches(score: UUID) -> AutomationCore:
    """A batch that is announced is labelled.

    Args:
        score: the deployment.
    """
    return _automation(
        "nightlabel: label batches that are announced",
        f"Whoever sends the event {BATCH_READY} has that batch labelled.",
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
    """Return what Prefect turns into a parameter: JSON with gaps that it fills from the event."""
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


def _batch_trigger(event: str) -> EventTrigger:
    return EventTrigger(
        expect={event},
        match=ResourceSpecification({"prefect.resource.id": [f"{BATCH}.*"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=datetime.timedelta(0),
    )


def _automation(name: str, description: str, trigger: EventTrigger, action: ActionTypes) -> AutomationCore:
    """Return an automation that carries a digest of what it does, to tell it from one of an earlier version."""
    bare = AutomationCore(name=name, description=description, trigger=trigger, actions=[action])
    text = json.dumps(bare.model_dump(mode="json"), sort_keys=True, default=sorted)
    return bare.model_copy(update={"tags": ["nightlabel", hashlib.sha256(text.encode()).hexdigest()[:12]]})
