//! Filter and score plugins over a snapshot (pure), and the loop that binds.
