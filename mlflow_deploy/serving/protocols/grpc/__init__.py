"""The Open Inference Protocol v2 over gRPC; loaded only with serving.grpc=true."""
