"""Series of a gRPC server's calls."""

from prometheus_client import CollectorRegistry

from zipmoe.rpc.metrics import GrpcServerMetrics


def test_the_grpc_metrics_have_the_names_of_other_grpc_servers():
    registry = CollectorRegistry()
    GrpcServerMetrics(registry)
    assert {metric.name for metric in registry.collect()} == {
        "grpc_server_started",
        "grpc_server_handled",
        "grpc_server_handling_seconds",
        "grpc_server_msg_received",
        "grpc_server_msg_sent",
    }
