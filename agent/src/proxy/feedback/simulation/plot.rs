//! The plot of the docs, drawn from the simulation.
