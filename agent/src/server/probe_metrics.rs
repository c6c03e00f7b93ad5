//! What probes came to, in the shape in which Prometheus reads it from a kubelet. Pure.

use std::fmt::Write;

use crate::pod::{BUCKETS, ProbeCount, ProbeSeries};

/// `/metrics/probes`.
pub(super) fn text(series: &[(ProbeSeries, ProbeCount)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = totals(&mut text, series).and_then(|()| durations(&mut text, series));
    text
}

fn totals(text: &mut String, all: &[(ProbeSeries, ProbeCount)]) -> std::fmt::Result {
    let name = "prober_probe_total";
    writeln!(
        text,
        "# HELP {name} [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result."
    )?;
    writeln!(text, "# TYPE {name} counter")?;
    for (series, count) in all {
        let uid = &series.pod.uid;
        for (result, number) in [("failed", count.failed), ("successful", count.successful)] {
            if number > 0 {
                let labels = labels(series, &format!("pod_uid=\"{uid}\","));
                writeln!(text, "{name}{{{labels},result=\"{result}\"}} {number}")?;
            }
        }
    }
    Ok(())
}

fn durations(text: &mut String, all: &[(ProbeSeries, ProbeCount)]) -> std::fmt::Result {
    let name = "prober_probe_duration_seconds";
    writeln!(
        text,
        "# HELP {name} [ALPHA] Duration in seconds for a probe response."
    )?;
    writeln!(text, "# TYPE {name} histogram")?;
    for (series, count) in all.iter().filter(|(_, count)| count.successful > 0) {
        let labels = labels(series, "");
        let mut so_far = 0;
        let bounds = BUCKETS.iter().map(ToString::to_string);
        for (bound, number) in bounds.chain(["+Inf".to_owned()]).zip(count.took) {
            so_far += number;
            writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {so_far}")?;
        }
        writeln!(text, "{name}_sum{{{labels}}} {}", count.total.as_secs_f64())?;
        writeln!(text, "{name}_count{{{labels}}} {so_far}")?;
    }
    Ok(())
}

fn labels(series: &ProbeSeries, more: &str) -> String {
    let ProbeSeries {
        pod,
        container,
        question,
    } = series;
    format!(
        "container=\"{container}\",namespace=\"{}\",pod=\"{}\",{more}probe_type=\"{question:?}\"",
        pod.namespace, pod.name
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pod::spec::Question;
    use crate::runtime::PodRef;

    #[test]
    fn prometheus_finds_what_it_reads_from_a_kubelet() {
        let series = ProbeSeries {
            pod: PodRef {
                uid: "u".into(),
                namespace: "d".into(),
                name: "p".into(),
            },
            container: "c".into(),
            question: Question::Readiness,
        };
        let mut count = ProbeCount {
            successful: 3,
            failed: 1,
            total: Duration::from_millis(1500),
            ..ProbeCount::default()
        };
        (count.took[0], count.took[11]) = (2, 1);
        let text = text(&[(series, count)]);
        for line in [
            "prober_probe_total{container=\"c\",namespace=\"d\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\",result=\"failed\"} 1",
            "prober_probe_total{container=\"c\",namespace=\"d\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\",result=\"successful\"} 3",
            "# TYPE prober_probe_duration_seconds histogram",
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"d\",pod=\"p\",probe_type=\"Readiness\",le=\"0.005\"} 2",
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"d\",pod=\"p\",probe_type=\"Readiness\",le=\"10\"} 2",
            "prober_probe_duration_seconds_bucket{container=\"c\",namespace=\"d\",pod=\"p\",probe_type=\"Readiness\",le=\"+Inf\"} 3",
            "prober_probe_duration_seconds_sum{container=\"c\",namespace=\"d\",pod=\"p\",probe_type=\"Readiness\"} 1.5",
            "prober_probe_duration_seconds_count{container=\"c\",namespace=\"d\",pod=\"p\",probe_type=\"Readiness\"} 3",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in\n{text}");
        }
    }
}
