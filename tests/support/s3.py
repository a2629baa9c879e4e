"""An S3 on this machine: moto's server, with a bucket named `bucket`.

Prints its port, and then obeys lines of stdin: `fetch FOLDER` copies all objects there.
"""
import pathlib
import sys

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                      aws_access_key_id="key", aws_secret_access_key="secret")
client.create_bucket(Bucket="bucket")
print(port, flush=True)
for line in sys.stdin:
    folder = pathlib.Path(line.removeprefix("fetch ").rstrip("\n"))
    objects = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for entry in page.get("Contents", []):
            path = folder / entry["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read())
            objects += 1
    print(objects, flush=True)
