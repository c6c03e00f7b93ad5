//! What people type: every command of kubectl that a cluster is run with, by its present version and by Debian's.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod changing;
mod client;
mod declared;
mod helm;
mod looking;
mod python;
mod readme;
mod running;
mod streams;

use kernelet_tests::Spec;
use kernelet_tests::scenario::Scenario;

use client::{Client, debian};

#[test]
fn every_command_does_what_its_user_expects_without_odd_words() {
    let Some(scenario) = Scenario::begin(Spec::scenario("kk1", 130, 2)) else {
        return;
    };
    readme::tour(&scenario);
    let stock = Client::new(&scenario, "kubectl", "present");
    let debian = Client::new(&scenario, debian(), "debian");
    for client in [&stock, &debian] {
        looking::at_the_cluster(client);
        client.begin();
        changing::apply_creates_then_changes_then_leaves_alone(client);
        looking::at_objects_in_every_form(client);
        looking::at_each_kind_in_words(client);
        changing::edit_saves_what_the_editor_wrote(client);
        changing::patch_takes_three_kinds(client);
        changing::labels_and_annotations_come_and_go(client);
        changing::scale_changes_the_number_of_pods(client);
        changing::rollouts_go_forth_and_back(client);
        declared::diff_and_replace_compare_with_what_is_there(client);
        declared::set_changes_one_thing(client);
        declared::apply_goes_over_to_the_server(client);
        running::create_then_wait_then_logs(client);
        running::watch_shows_changes_as_they_happen(client);
        running::delete_waits_for_finalizers_and_takes_what_is_owned(client);
        client.end();
    }
    stock.begin();
    declared::apply_prunes_what_is_in_no_file_any_more(&stock);
    declared::apply_sets_prune_too(&stock);
    declared::apply_reaches_the_status_alone(&stock);
    declared::certificates_are_signed_when_somebody_approves(&stock);
    stock.end();
    looking::at_events_and_schemas(&stock);
    helm::keeps_a_release(&stock);
    readme::a_node_is_removed(&scenario);
}

#[test]
fn streams_reach_into_pods() {
    let Some(scenario) = Scenario::begin(Spec::scenario("ks1", 133, 1)) else {
        return;
    };
    let stock = Client::new(&scenario, "kubectl", "present");
    let debian = Client::new(&scenario, debian(), "debian");
    streams::lead_to_pods(&scenario);
    for client in [&stock, &debian] {
        streams::begin(client);
        streams::the_server_passes_requests_on(client);
        streams::exec_runs_a_command_and_says_how_it_ended(client);
        streams::exec_gives_a_terminal(client);
        streams::cp_moves_files_both_ways(client);
        streams::attach_joins_the_container(client);
        streams::logs_take_every_option(client);
        streams::run_feeds_a_pod_and_takes_it_away(client);
        streams::port_forward_reaches_what_listens(client);
        if client.namespace == stock.namespace {
            // Debian's asks for an API that was only ever alpha.
            streams::debug_looks_at_another_container(client);
            running::resize_changes_a_running_container(client);
            python::lives_in_the_namespace_of(client);
        }
        client.end();
    }
}
