"""Inside the guest: agent, seed, readiness, ssh."""
