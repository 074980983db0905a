//! `pfs mounts`.

use std::path::PathBuf;

use pfs::{
    mount::{self, Life, MountState},
    store::{Forgotten, Store},
};
use serde_json::json;

use super::{
    Context, Ending,
    failure::{Failure, Kind},
    output::{age, print, print_json, table},
};

/// List the mounts of a store, or of every store that has one here.
///
/// Mounts in other containers are known by their leases. "dead" is a mount whose process was killed; pfs umount clears
/// it away. "foreign" is one of which nobody here can tell whether it is over, on another host or from a restored backup. It
/// counts as live until somebody who knows lets it go with --forget.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  pfs mounts\n  pfs mounts /srv/oci\n  pfs mounts --json /srv/oci")]
pub struct Args {
    /// The layout directory.
    store: Option<PathBuf>,
    /// Let go of this lease, as an error message or --json names it, because what held it is over.
    #[arg(long, value_name = "LEASE", requires = "store")]
    forget: Option<String>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    let json = args.json;
    act(context, args).map_err(|failure| failure.json(json))
}

fn act(context: &Context, args: Args) -> Ending {
    let named = args.store.as_ref().or(context.globals.store.as_ref());
    let store = named.map(|path| Store::open(path)).transpose()?;
    if let (Some(id), Some(store)) = (&args.forget, &store) {
        return forget(store, id);
    }
    let mut mounts = mount::mounts(store.as_ref())?;
    if let Some(store) = &store {
        mounts.retain(|state| state.store.as_deref() == Some(store.path()));
    }
    if args.json {
        let mounts: Vec<_> = mounts.iter().map(document).collect();
        print_json(&json!({"schema": "pfs.mounts/1", "mounts": mounts}))?;
    } else if context.globals.quiet {
        print(&mounts.iter().map(|state| mountpoint(state) + "\n").collect::<String>())?;
    } else {
        let now = context.now_seconds();
        let rows = mounts.iter().map(|state| row(state, now)).collect();
        print(&table(&["IMAGE", "MOUNTPOINT", "DIGEST", "PID", "SINCE", "PINS", "STATE"], &[3, 5], rows))?;
    }
    Ok(0)
}

fn forget(store: &Store, id: &str) -> Ending {
    match store.forget_lease(id)? {
        Forgotten::Gone => print(&format!("forgot {id}; the next pfs gc frees what only it kept\n")).map(|()| 0),
        Forgotten::Alive => {
            let problem = format!("the lease {id} is held by a process that is alive");
            Err(Failure::new(Kind::InUse, anyhow::anyhow!(problem)).hint("pfs umount ends a mount"))
        }
        Forgotten::Unknown => {
            let problem = format!("{} has no lease {id}", store.path().display());
            Err(Failure::new(Kind::NotFound, anyhow::anyhow!(problem))
                .hint("pfs mounts --json lists the leases of mounts"))
        }
    }
}

fn row(state: &MountState, now: i64) -> Vec<String> {
    vec![
        image(state),
        mountpoint(state),
        state.manifest.map_or_else(|| "?".into(), |manifest| manifest.short()),
        state.pid.map_or_else(|| "?".into(), |pid| pid.to_string()),
        state.since.map_or_else(|| "?".into(), |since| age(now - since.as_second())),
        state.pins.to_string(),
        life(state.life).into(),
    ]
}

fn image(state: &MountState) -> String {
    let store = state.store.as_ref().map_or_else(|| "?".into(), |store| store.display().to_string());
    let built = state.tag.as_ref().map(|tag| format!("{store}:{tag}"));
    state.source.clone().or(built).unwrap_or(store)
}

fn mountpoint(state: &MountState) -> String {
    state.mountpoint.as_ref().map_or_else(|| "?".into(), |path| path.display().to_string())
}

fn life(life: Life) -> &'static str {
    match life {
        Life::Live => "live",
        Life::Foreign => "foreign",
        Life::DeadMount => "dead",
        Life::DeadLease => "ended",
        Life::NoLease => "no lease",
    }
}

fn document(state: &MountState) -> serde_json::Value {
    json!({
        "store": state.store,
        "tag": state.tag,
        "manifest": state.manifest,
        "mountpoint": state.mountpoint,
        "source": state.source,
        "pid": state.pid,
        "since": state.since.map(|since| since.to_string()),
        "pins": state.pins,
        "lease": state.lease,
        "state": life(state.life),
    })
}
