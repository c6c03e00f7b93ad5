//! What the agent is told: paths, addresses and names.
