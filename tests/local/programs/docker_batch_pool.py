"""A pool of four nodes, and one task whose four instances say hello from it.

Needs QARNOT_CLIENT_TOKEN and, for another address than the public API's, QARNOT_CLUSTER_URL.
"""

import qarnot

connection = qarnot.Connection()

pool = connection.create_pool("docker-batch-pool", "docker-batch", 4)
pool.submit()
print("pool submitted")

try:
    task = connection.create_task("hello", pool, 4)
    task.constants["DOCKER_CMD"] = "echo Hello from instance ${INSTANCE_ID}!"
    task.run()

    print("task:", task.state)
    print(task.stdout(), end="")
    if task.state == "Failure":
        print("errors:", task.errors)
finally:
    pool.close()

pool.update(True)
print("pool closed:", pool.state)
