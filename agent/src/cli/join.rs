//! `kernelet join`.

use std::path::PathBuf;

use super::CliError;
use crate::config::{DEFAULT_ROOT_DIR, host_name};
use crate::node::join::{Join, Joined, join};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The API server, https://HOST:6443
    url: String,
    /// The token that allows joining
    #[arg(
        long,
        env = "KERNELET_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: String,
    /// The cluster's CA certificate, in PEM
    #[arg(long, value_name = "FILE")]
    ca_file: PathBuf,
    /// Name of this node [default: the host name]
    #[arg(long, env = "KERNELET_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Directory for the kubeconfig; `kernelet run` has to be given the same
    #[arg(long, env = "KERNELET_ROOT_DIR", value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
    root_dir: PathBuf,
}

pub(super) fn run(args: Args) -> Result<String, CliError> {
    let Args {
        url,
        token,
        ca_file,
        node_name,
        root_dir,
    } = args;
    let wanted = Join {
        url,
        token,
        ca_file,
        node_name: node_name.unwrap_or_else(host_name),
        root_dir,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let joined = runtime.block_on(join(&wanted))?;
    Ok(render(&wanted.node_name, &joined))
}

fn render(node: &str, joined: &Joined) -> String {
    match joined {
        Joined::Now { kubeconfig } => {
            format!(
                "joined as node {node}; the kubeconfig is {}\nnow start the agent: kernelet run\n",
                kubeconfig.display()
            )
        }
        Joined::Already { kubeconfig, until } => {
            format!(
                "node {node} has joined already; {} is good until {until}\n",
                kubeconfig.display()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_endings_say_where_the_kubeconfig_is() {
        let kubeconfig = PathBuf::from("/r/kubeconfig");
        assert!(
            render(
                "n",
                &Joined::Now {
                    kubeconfig: kubeconfig.clone()
                }
            )
            .contains("is /r/kubeconfig")
        );
        let until = "2027-01-01T00:00:00Z".parse().unwrap();
        let text = render("n", &Joined::Already { kubeconfig, until });
        assert_eq!(
            text,
            "node n has joined already; /r/kubeconfig is good until 2027-01-01T00:00:00Z\n"
        );
    }
}
