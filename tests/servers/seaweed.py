"""SeaweedFS: a real S3 server, offline on loopback."""

import io
import json
import signal
import sys
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException

from tests.servers.process import Server, find_program, free_ports

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret"
BUCKET = "mailpoll"
#: A bucket that strangers may list and read, once a test has made it.
PUBLIC_BUCKET = "for-everybody"


class Seaweed(Server):
    """S3 at ``endpoint``; ``url`` is what STORAGE_URL takes. Buckets are made on request.

    ``stop`` and ``start`` make an outage: objects and addresses stay as they were.
    """

    program = "weed"
    # It takes 10 s to stop when asked. Killed, it keeps what it has acknowledged: that is with the
    # kernel already.
    stop_signal = signal.SIGKILL
    start_timeout = 60.0
    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.s3_port, *self._ports = free_ports(8)
        self.endpoint = f"{self.host}:{self.s3_port}"
        self.url = self.url_of(BUCKET)

    def url_of(self, bucket: str) -> str:
        return f"s3://{ACCESS_KEY}:{SECRET_KEY}@{self.endpoint}/{bucket}?secure=0"

    def drop_bucket(self, bucket: str) -> None:
        """Remove a bucket with all that is in it: each takes volumes, of which there is an end."""
        client = self.client()
        if client.bucket_exists(bucket):
            for found in client.list_objects(bucket, recursive=True):
                client.remove_object(bucket, found.object_name)
            client.remove_bucket(bucket)

    def client(self) -> Minio:
        """A client of its own for tests to look behind the scenes; fails fast."""
        pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=20), retries=False)
        return Minio(self.endpoint, ACCESS_KEY, SECRET_KEY, secure=False, http_client=pool)

    def prepare(self) -> list[str]:
        program = find_program("weed", Path(sys.executable).parent)
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        identities = self.directory / "s3.json"
        identities.write_text(json.dumps(_identities()))
        s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        # Every gRPC port is named: by default it is the port plus 10,000, which may be taken.
        options = {
            "dir": data,
            "ip": self.host,
            "ip.bind": self.host,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.volumeSizeLimitMB": 64,
            "master.electionTimeout": "1s",
            "master.resumeState": "false",
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 1000,
            "volume.minFreeSpace": "1",
            "volume.preStopSeconds": 0,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "s3.port": self.s3_port,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": identities,
        }
        return [program, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]

    def stop(self) -> None:
        super().stop()
        for port in (self.s3_port, *self._ports):
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)

    def answers(self) -> bool:
        client = self.client()
        try:
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
            client.put_object(BUCKET, "ready", io.BytesIO(b"ready"), 5)
            client.remove_object(BUCKET, "ready")
        except (MinioException, urllib3.exceptions.HTTPError):
            return False
        return True


def _identities() -> dict[str, object]:
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    strangers = [f"{action}:{PUBLIC_BUCKET}" for action in ("Read", "List")]
    return {
        "identities": [
            {"name": "test", "credentials": [keys], "actions": actions},
            {"name": "anonymous", "actions": strangers},
        ]
    }
