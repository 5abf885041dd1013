"""HTTP serving of bundles on Ray Serve; ``serve.deploying`` starts an endpoint."""
