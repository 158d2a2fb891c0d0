"""An elastic pool that has no node until there is work: first a task of one instance, then one of five.

Needs QARNOT_CLIENT_TOKEN and, for another address than the public API's, QARNOT_CLUSTER_URL.
"""

import qarnot

connection = qarnot.Connection()

pool = connection.create_pool("elastic-pool", "docker-batch")
pool.setup_elastic(minimum_total_slots=0, maximum_total_slots=5, resize_period=90)
pool.submit()
print("elastic:", pool.is_elastic, pool.elastic_minimum_slots, pool.elastic_maximum_slots)

try:
    for count in (1, 5):
        task = connection.create_task(f"work-{count}", pool, count)
        task.constants["DOCKER_CMD"] = "echo part ${INSTANCE_ID} of ${INSTANCE_COUNT}"
        task.run()
        print(task.name, task.state)
        print(task.stdout(), end="")
        pool.update(True)
        print("nodes:", pool.running_instance_count)
finally:
    pool.close()

pool.update(True)
print("pool closed:", pool.state)
