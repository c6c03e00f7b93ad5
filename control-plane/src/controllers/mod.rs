//! One file a controller: a pure `reconcile`, and the loop that feeds it and performs what it says.
