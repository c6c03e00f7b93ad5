//! What is refused: in words that name the place and the way out, with a failure's status, and with nothing left behind.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod objects;
mod programs;

use kernelet_tests::Spec;
use kernelet_tests::scenario::Scenario;

#[test]
fn bad_objects_and_strangers_are_refused_and_nothing_is_stored() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kk2", 131, 1)) else {
        return;
    };
    objects::a_manifest_is_judged_whole(&scenario);
    objects::a_field_that_must_not_change_does_not(&scenario);
    objects::strangers_see_nothing(&scenario);
}

#[test]
fn programs_that_cannot_start_say_why_and_leave_nothing() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kk3", 132, 1)) else {
        return;
    };
    programs::an_agent_that_cannot_start_leaves_nothing(&scenario);
    programs::joining_fails_with_the_reason(&scenario);
    programs::a_control_plane_that_cannot_start_says_why(&scenario);
}
