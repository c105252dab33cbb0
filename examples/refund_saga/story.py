"""What ``examples/run refund_saga`` shows."""

from __future__ import annotations

import httpx

from examples.stage.stage import Stage


def play(stage: Stage) -> None:
    stage.world.down.add("/gateways/first")
    stage.sql("The first gateway is down", "insert into refunds values (1, 501, 4900, 'the kettle leaks')")
    stage.wait_for("refund_paid")
    stage.world.down.add("/gateways/second")
    stage.sql("Now both are", "insert into refunds values (2, 502, 1250, 'the wrong colour')")
    stage.wait_for("human_alerted")
    stage.world.down.clear()
    stage.sql("A large one waits for a human", "insert into refunds values (3, 503, 129900, 'the lens is scratched')")
    stage.wait_for("saga.approval_wanted")
    [waiting] = httpx.get(f"{stage.agent.url}/sagas", params={"state": "waiting"}).json()["sagas"]
    print(f"\n> cdc-agent sagas approve {waiting['id']} --by anna", flush=True)
    stage.post(f"/sagas/{waiting['id']}/approve", {"by": "anna"})
    stage.wait_for("refund_paid", 2)
