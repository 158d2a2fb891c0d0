"""Life of nodes: request, placement, boot, instances, release, loss. Also decides how many nodes a pool has."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.backend import attempt, scaling, states
from airflow_qarnot_pool.local.backend.models import (
    Instance,
    InstancePhase,
    Node,
    Pool,
)
from airflow_qarnot_pool.local.processes import command
from airflow_qarnot_pool.local.processes.storage import StorageError

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

PLACING = 0.25
"""Share of the boot time before a node is placed (dispatched)."""
MAX_NODES = 5000
"""Maximum number of nodes in one pool, because all of them run on this machine."""


class Nodes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.numbers = 0
        self.by_id: dict[str, Node] = {}
        self._withheld: list[Node] | None = None

    # ---- one node ----

    def _ask(self, number: int, slots: int, delay: float, *, pool: Pool | None = None) -> Node:
        """Request a node that is placed and then up, `boot_seconds` from now at the latest.

        :param delay: 0 to 1, its rank among nodes requested together, because they come up one after the other.
        """
        self.numbers += 1
        node = Node(f"node-{self.numbers:06d}", number, slots, self._context.now, pool)
        self.by_id[node.id] = node
        boot = self._context.settings.boot_seconds
        first = boot * PLACING * delay
        later = self._context.clock.after
        node.timers.append(later(first, lambda: self._placed(node)))
        node.timers.append(later(boot * (1 - PLACING) + first, lambda: self._booted(node)))
        return node

    def _placed(self, node: Node) -> None:
        node.placed = True
        if node.pool is not None:
            self.refresh(node.pool)
        elif node.instance is not None:
            self._context.tasks.enter(node.instance, InstancePhase.PLACED)

    def withhold(self, withheld: bool) -> None:
        """Let no node come up, as if none were free. False lets those come up that have been due."""
        due, self._withheld = self._withheld or [], [] if withheld else None
        for node in due:
            if not node.is_released:
                self._booted(node)

    def _booted(self, node: Node) -> None:
        if self._withheld is not None:
            self._withheld.append(node)
            return
        pool = node.pool
        if pool is not None and (pool.spec["preparationTask"] or attempt.resources(pool)):
            self._context.spawn(self._prepare(pool, node))
        else:
            self._up(node)

    async def _prepare(self, pool: Pool, node: Node) -> None:
        """Copy the resources of the pool to the node and run its preparation command."""
        context = self._context
        copied = pool.syncs
        error = await self._copy_resources(pool, node)
        if error is None and pool.spec["preparationTask"] and not node.is_released:
            error = await self._run_preparation(pool, node)
        while error is None and copied != pool.syncs and not node.is_released:
            # A synchronization that was requested meanwhile has left this node out.
            copied = pool.syncs
            error = await self._copy_resources(pool, node)
        context.touch()
        if node.is_released:
            await asyncio.to_thread(self._remove_directory, node)
        elif error is not None:
            failed = attempt.name_full_disk(context, attempt.AttemptResult(attempt.COMMAND, error))
            context.pools.fail(pool, failed.code or "", failed.message)
        else:
            self._up(node)

    async def _run_preparation(self, pool: Pool, node: Node) -> str | None:
        """Run the preparation command of the pool on the node, and return why it failed."""
        context = self._context
        job = attempt.node_directory(context, node)
        place = command.Directories(job, job, os.path.join(os.path.dirname(job), "tmp"))
        os.makedirs(place.scratch, exist_ok=True)
        own = command.variables(node.number, len(pool.nodes), place)
        output = context.output_of(pool, node.number)
        try:
            words = command.words(pool.spec["preparationTask"]["commandLine"], pool.constants, own, place)
        except command.CommandError as bad:
            return str(bad)
        if not words:
            return None
        env = attempt.environment(context, pool, own, place)
        result = await attempt.run_command(context, node, words, job, env, output, pool.profile)
        return attempt.problem_of(f"The preparation task on node {node.id}", result, output)

    async def _copy_resources(self, pool: Pool, node: Node) -> str | None:
        job = attempt.node_directory(self._context, node)
        os.makedirs(job, exist_ok=True)
        try:
            await asyncio.to_thread(self._context.storage.download, attempt.resources(pool), job)
        except StorageError as error:
            return str(error)
        return None

    async def synchronize(self, pool: Pool) -> None:
        """Copy the resources of the pool to its nodes again. Files deleted from the bucket stay."""
        nodes = [node for node in pool.nodes.values() if node.up is not None]
        pool.syncs += 1
        pool.syncing += len(nodes)
        for node in nodes:
            await self._copy_resources(pool, node)
            pool.syncing -= 1
        self._context.touch()
        self.dispatch(pool)

    def _up(self, node: Node) -> None:
        now = self._context.now
        node.placed = True
        node.up = node.idle_since = now
        self._preempt_later(node)
        self._context.meter.change(now, up=1)
        if node.pool is not None:
            node.pool.meter.change(now, up=1)
            self._context.note(node.pool)
            self.refresh(node.pool)
            self.dispatch(node.pool)
            self.resize(node.pool)
        elif node.instance is not None:
            node.instance.task.meter.change(now, up=1)
            self._context.note(node.instance.task)
            node.instance.booting = None
            self._context.tasks.start(node.instance, node)

    def _preempt_later(self, node: Node) -> None:
        preemption, owner = self._context.settings.preemption, node.owner
        if preemption is not None and owner is not None and owner.spec["schedulingType"] == "flex":
            lifetime = preemption.lifetime(node.id)
            node.timers.append(self._context.clock.after(lifetime, lambda: self.lose(node, "preempted")))

    def drop(self, node: Node) -> None:
        """Release a node whose processes have ended or are being killed."""
        if node.is_released:
            return
        node.is_released = True
        for timer in node.timers:
            timer.cancel()
        if node.run is not None:
            self._context.runner.kill(node.run)
        if node.up is not None:
            self._stop_billing(node)
        if node.pool is not None and node.pool.nodes.get(node.number) is node:
            del node.pool.nodes[node.number]
            node.pool.slots -= node.slots
        self.by_id.pop(node.id, None)
        if not node.running and node.run is None and node.up is not None:
            self._remove_directory(node)

    def _stop_billing(self, node: Node) -> None:
        now, busy = self._context.now, len(node.running)
        owner = node.owner
        for meter in (self._context.meter, *([owner.meter] if owner else [])):
            meter.change(now, up=-1, busy=-1 if busy else 0, busy_slots=-busy)
        self._context.note(owner)

    def _remove_directory(self, node: Node) -> None:
        shutil.rmtree(os.path.join(self._context.scratch, "nodes", node.id), ignore_errors=True)

    def occupy(self, node: Node, instance: Instance) -> None:
        node.running.add(instance)
        instance.node = node
        self._load(node, instance, 1)

    def vacate(self, node: Node, instance: Instance) -> None:
        """Take a finished attempt off its node."""
        node.running.discard(instance)
        instance.node = None
        if node.is_released:
            if not node.running:
                self._remove_directory(node)
            return
        node.idle_since = self._context.now
        self._load(node, instance, -1)

    def _load(self, node: Node, instance: Instance, change: int) -> None:
        now, count = self._context.now, len(node.running)
        turned = change if count == (1 if change > 0 else 0) else 0
        owner = node.pool or instance.task
        for meter in (self._context.meter, owner.meter):
            meter.change(now, busy=turned, busy_slots=change)
        self._context.note(owner)

    def lose(self, node: Node, loss: str = "lost") -> None:
        """Kill a node: its instances are lost, and its pool gets another node if it needs one.

        :param loss: the verb for errors: lost or preempted.
        """
        node.loss = loss
        lost, pool = list(node.running), node.pool
        for instance in lost:
            instance.lost = True
            if instance.run is not None:
                self._context.runner.kill(instance.run)
        waiting = node.instance
        self.drop(node)
        if pool is not None:
            self.refresh(pool)
            self.resize(pool)
        elif waiting is not None and not lost and waiting.node is None:
            self._context.tasks.lost_before_start(waiting)

    # ---- tasks without a pool: one node per attempt ----

    def boot_for(self, instance: Instance) -> None:
        node = self._ask(instance.id, 1, 1.0)
        node.instance = instance
        instance.booting = node

    # ---- pools ----

    def resize(self, pool: Pool) -> None:
        """Decide how many nodes the pool should have now, and act on it."""
        if not pool.is_open:
            return
        context, now = self._context, self._context.now
        if pool.resize_timer is not None:
            pool.resize_timer.cancel()
            pool.resize_timer = None
        rule, edge = self._rule(pool)
        plan = scaling.plan(rule, self._view(pool, rule))
        pool.grow_after, pool.target = plan.grow_after, plan.target
        for number in plan.release:
            self.drop(pool.nodes[number])
        if plan.release and rule.ticks:
            pool.last_tick = now
        self._grow(pool, plan.grow, rule)
        next_decision = min((when for when in (plan.next_decision, edge) if when is not None), default=None)
        if next_decision is not None:
            pool.resize_timer = context.clock.at(next_decision, lambda: self.resize(pool))
        if plan.grow or plan.release:
            self.refresh(pool)

    def _view(self, pool: Pool, rule: scaling.ScalingRule) -> scaling.DemandView:
        has_fixed_size = rule.fixed is not None and rule.fixed == pool.slots
        return scaling.DemandView(
            now=self._context.now,
            slots=pool.slots,
            demand=pool.waiting + pool.running,
            idle=[] if has_fixed_size else self._idle(pool),
            grow_after=pool.grow_after,
            origin=pool.created,
            last_tick=pool.last_tick,
        )

    def _rule(self, pool: Pool) -> tuple[scaling.ScalingRule, float | None]:
        """Return the rule in force and the time at which another one may replace it."""
        if pool.scaling is not None:
            policy = scaling.active(pool.scaling, self._context.now)
            pool.policy = policy.name if policy else None
            rule = policy.rule if policy else scaling.ScalingRule(fixed=0)
            return rule, scaling.next_edge(pool.scaling, self._context.now)
        pool.policy = None
        if pool.elastic["isElastic"]:
            return scaling.elastic_rule(pool.elastic), None
        return scaling.ScalingRule(fixed=pool.instance_count), None

    def _idle(self, pool: Pool) -> list[scaling.IdleNode]:
        return [
            scaling.IdleNode(node.number, node.slots, node.idle_since)
            for node in pool.nodes.values()
            if node.up is not None and not node.running
        ]

    def _grow(self, pool: Pool, slots: int, rule: scaling.ScalingRule) -> None:
        """Request nodes.

        A queue-driven pool takes whole nodes up to its maximum. Otherwise the last node has fewer slots, because the
        pool then has exactly its size.
        """
        if slots and rule.fixed is None:
            whole = -(-slots // pool.slots_per_node) * pool.slots_per_node
            slots = max(slots, min(whole, rule.max_total - pool.slots))
        sizes: list[int] = []
        while slots > 0 and len(pool.nodes) + len(sizes) < MAX_NODES:
            sizes.append(min(slots, pool.slots_per_node))
            slots -= sizes[-1]
        number = 0
        for position, size in enumerate(sizes, start=1):
            while number in pool.nodes:
                number += 1
            pool.nodes[number] = self._ask(number, size, position / len(sizes), pool=pool)
            pool.slots += size

    def settle(self, pool: Pool) -> None:
        """Settle a new pool without nodes after its placement delay: it has all nodes that it needs."""
        if pool.is_open and not pool.nodes:
            pool.settled = True
            self.refresh(pool)

    def refresh(self, pool: Pool) -> None:
        """Set the state of the pool from its nodes."""
        if not pool.is_open:
            return
        up = sum(1 for node in pool.nodes.values() if node.up is not None)
        placed = sum(1 for node in pool.nodes.values() if node.placed)
        pool.settled = pool.settled or up > 0
        missing = max(0, pool.target - pool.slots)
        wanted = len(pool.nodes) + -(-missing // pool.slots_per_node)
        state = states.pool_state(wanted=wanted, placed=placed, up=up, settled=pool.settled)
        self._context.pools.store.move(pool, state, self._context.now)

    def dispatch(self, pool: Pool) -> None:
        """Give waiting instances to free slots, first come first served, fullest node first."""
        if not pool.waiting or not pool.is_open:
            return
        free = [node for node in pool.nodes.values() if node.free]
        free.sort(key=lambda node: (-len(node.running), node.number))
        passed: list[Instance] = []
        for node in free:
            while node.free and pool.queue:
                instance = pool.queue.popleft()
                if instance.phase is not InstancePhase.WAITING:
                    continue
                if pool.syncing and self._context.tasks.waits_for_sync(instance.task):
                    passed.append(instance)
                    continue
                self._context.tasks.start(instance, node)
        pool.queue.extendleft(reversed(passed))
