"""Which group works on which job, and which slot takes which request, in both decoding engines.

A job is a queue of requests. The slots of all groups that work on it take its requests in their
order. A group keeps its job until the queue is empty and its own slots are idle.

Dimensions: A adapter groups, B slots of a group, S = A B slots, J jobs.
"""

import jax
import jax.numpy as jnp

from jaxloop.lm.generation.slots import DecodeShape, Jobs


def groups_jobs(
    shape: DecodeShape, request_S: jax.Array, job_A: jax.Array, next_J: jax.Array, jobs: Jobs
) -> jax.Array:
    """Return the job of every group, -1 where there is none.

    Each group that is free takes the job that has most waiting requests per group.

    Args:
        shape: static shape of the program.
        request_S: the slots' requests, -1 where idle.
        job_A: the groups' jobs so far.
        next_J: first waiting request of each job.
        jobs: all jobs.
    """
    busy_A = (request_S.reshape(shape.num_groups, shape.slots_per_group) >= 0).any(-1)
    waiting_J = jobs.end - next_J
    has_texts_A = (job_A >= 0) & (waiting_J[jnp.maximum(job_A, 0)] > 0)
    job_A = jnp.where(busy_A | has_texts_A, job_A, -1)
    jobs_J = jnp.arange(waiting_J.shape[0], dtype=jnp.int32)

    def choose():
        groups_J = (job_A[:, None] == jobs_J[None]).sum(0, dtype=jnp.int32)

        def choose_one(a, carry):
            job_A, groups_J = carry
            share_J = waiting_J.astype(jnp.float32) / (groups_J + 1).astype(jnp.float32)
            best = jnp.argmax(share_J).astype(jnp.int32)
            takes = (job_A[a] < 0) & (share_J[best] > 0)
            job_A = job_A.at[a].set(jnp.where(takes, best, job_A[a]))
            return job_A, groups_J.at[best].add(takes.astype(jnp.int32))

        return jax.lax.fori_loop(0, shape.num_groups, choose_one, (job_A, groups_J))[0]

    some_free = (job_A < 0).any() & (waiting_J > 0).any()
    return jax.lax.cond(some_free, choose, lambda: job_A)


def take_requests(
    shape: DecodeShape, request_S: jax.Array, job_A: jax.Array, next_J: jax.Array, jobs: Jobs
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Idle slots take the next requests of their groups' jobs, in slot order.

    The arguments are those of `groups_jobs`.

    Returns:
        The slots' requests [S], the first waiting request of each job [J], and which slots took a
        request [S].
    """
    idle_AB = (request_S < 0).reshape(shape.num_groups, shape.slots_per_group)
    idle_AB = idle_AB & (job_A >= 0)[:, None]
    before_BB = jnp.tril(jnp.ones((shape.slots_per_group, shape.slots_per_group), bool), -1)
    same_job_AA = job_A[:, None] == job_A[None]
    groups_A = jnp.arange(shape.num_groups)
    earlier_AA = same_job_AA & (groups_A[:, None] > groups_A[None])
    idle_A = idle_AB.sum(-1, dtype=jnp.int32)
    rank_AB = (idle_AB[:, None, :] & before_BB[None]).sum(-1, dtype=jnp.int32)
    rank_AB = rank_AB + jnp.where(earlier_AA, idle_A[None], 0).sum(-1, dtype=jnp.int32)[:, None]
    some_job_A = jnp.maximum(job_A, 0)
    wanted_AB = next_J[some_job_A][:, None] + rank_AB
    fresh_AB = idle_AB & (wanted_AB < jobs.end[some_job_A][:, None])
    fresh_S = fresh_AB.reshape(-1)
    request_S = jnp.where(fresh_S, wanted_AB.reshape(-1), request_S)
    jobs_J = jnp.arange(jobs.end.shape[0], dtype=jnp.int32)
    taken_A = fresh_AB.sum(-1, dtype=jnp.int32)
    taken_AJ = jnp.where(job_A[:, None] == jobs_J[None], taken_A[:, None], 0)
    return request_S, next_J + taken_AJ.sum(0, dtype=jnp.int32), fresh_S
