"""cluster.yaml, taken by Ray's own provider for AWS to an EC2 that stands in for Amazon's: one machine of each kind."""

from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file as `ray up` has it once it has made a key and a security group, with the roles of docs/clusters.md."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        iam = boto3.client("iam", region_name="us-east-1")
        for role in ("llava-batch-head", "llava-batch-worker"):
            iam.create_instance_profile(InstanceProfileName=role)
        yield bootstrap_aws(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_machine_of_each_kind_starts_with_its_role_its_disk_and_its_market(config: Any) -> None:
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name, type in config["available_node_types"].items():
        kind = "head" if name == "head" else "worker"
        provider.create_node(type["node_config"], {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
    found = boto3.client("ec2", region_name="us-east-1").describe_instances()["Reservations"]
    machines = {}
    for one in (instance for reservation in found for instance in reservation["Instances"]):
        tags = {tag["Key"]: tag["Value"] for tag in one["Tags"]}
        role = one["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        machines[tags[TAG_RAY_USER_NODE_TYPE]] = (one["InstanceType"], role, one.get("InstanceLifecycle", "on demand"))
    assert machines == {
        "head": ("m7i.2xlarge", "llava-batch-head", "on demand"),
        "gpu-spot": ("g6e.4xlarge", "llava-batch-worker", "spot"),
        "gpu-on-demand": ("g6e.4xlarge", "llava-batch-worker", "on demand"),
        "cpu": ("c7i.8xlarge", "llava-batch-worker", "spot"),
    }
