//! Puts the parts of the agent together and runs them.
