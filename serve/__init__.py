"""Ray Serve applications: HTTP in front of bundles. ``serve.deploying`` starts one."""
