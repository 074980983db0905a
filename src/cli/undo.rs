//! `pfs undo`.

use pfs::{
    name::Selector,
    store::Store,
    undo::{LostEntry, Remains, UndoError, Undone, bring_back, lost_entries},
};
use serde_json::json;

use super::{
    Context, Ending, Failure,
    check::subject,
    output::{count, print, print_json, table},
};

/// Bring deleted images back while their chunks are there.
///
/// Of a store, what the last deletion took; of an image, its last text in the index log. Blobs come back from quarantine; what
/// was freed is gone.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs undo --list /srv/oci\n  pfs undo /srv/oci:app\n  pfs undo /srv/oci\n  pfs undo --force /srv/oci:app"
)]
pub struct Args {
    /// A layout directory, or a deleted image.
    #[arg(value_name = "STORE|REF")]
    subject: Option<String>,
    /// List what could be brought back, and write nothing.
    #[arg(long)]
    list: bool,
    /// Move the tag back even if it stands for another image by now.
    #[arg(short, long, conflicts_with = "list")]
    force: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    undo(context, &args).map_err(|failure| failure.json(args.json))
}

fn undo(context: &Context, args: &Args) -> Ending {
    let (store, selector) = subject(context, args.subject.as_deref())?;
    let mut lost = lost_entries(&store)?;
    lost.retain(|lost| selector.as_ref().is_none_or(|selector| fits(selector, lost)));
    if args.list {
        return list(context, args, &store, &lost);
    }
    let mut undone = Vec::new();
    for lost in chosen(&lost, selector.as_ref())? {
        undone.push(bring_back(&store, lost, args.force)?);
    }
    if args.json {
        let undone: Vec<_> = undone.iter().map(document).collect();
        print_json(&json!({"schema": "pfs.undo/1", "store": store.path(), "undone": undone}))?;
    } else if !context.globals.quiet {
        print(&undone.iter().map(line).collect::<String>())?;
    }
    Ok(0)
}

fn fits(selector: &Selector, lost: &LostEntry) -> bool {
    match selector {
        Selector::Tag(tag) => lost.tag.as_ref() == Some(tag),
        Selector::Digest(prefix) => lost.digest.to_string().starts_with(prefix),
    }
}

/// Of an image, its last entry. Of a store, all that went with the last one of those that can come back as they were.
fn chosen<'l>(lost: &'l [LostEntry], selector: Option<&Selector>) -> Result<Vec<&'l LostEntry>, UndoError> {
    if let Some(selector) = selector {
        return lost.first().map(|lost| vec![lost]).ok_or_else(|| UndoError::NotFound(selector.clone()));
    }
    let ready: Vec<&LostEntry> = lost.iter().filter(|lost| lost.is_ready()).collect();
    let last = ready.first().ok_or(UndoError::Nothing)?.generation;
    Ok(ready.into_iter().filter(|lost| lost.generation == last).collect())
}

fn list(context: &Context, args: &Args, store: &Store, lost: &[LostEntry]) -> Result<u8, Failure> {
    if args.json {
        let lost: Vec<_> = lost.iter().map(lost_document).collect();
        print_json(&json!({"schema": "pfs.undo-list/1", "store": store.path(), "lost": lost}))?;
    } else if context.globals.quiet {
        print(&lost.iter().filter(|lost| lost.is_ready()).map(|lost| lost.name() + "\n").collect::<String>())?;
    } else {
        let row = |lost: &LostEntry| {
            let tag = lost.tag.as_ref().map_or_else(|| "<none>".into(), ToString::to_string);
            vec![tag, lost.digest.short(), state(lost)]
        };
        print(&table(&["TAG", "DIGEST", "STATE"], &[], lost.iter().map(row).collect()))?;
    }
    Ok(0)
}

fn state(lost: &LostEntry) -> String {
    let remains = match &lost.remains {
        Remains::Complete(0) => "complete".into(),
        Remains::Complete(aside) => format!("complete, {} in quarantine", count(*aside as u64, "blob")),
        Remains::Missing(missing) => format!("{} gone", count(missing.len() as u64, "blob")),
        Remains::Unreadable(error) => format!("gone: {error}"),
    };
    let taken = if lost.taken_by.is_some() { "; its tag stands for another image now" } else { "" };
    remains + taken
}

fn line(undone: &Undone) -> String {
    let name = undone.tag.as_ref().map_or_else(|| "an entry without a tag".into(), ToString::to_string);
    let restored = match undone.restored {
        0 => String::new(),
        number => format!(", {} from quarantine", count(number, "blob")),
    };
    format!("brought back {name} ({}){restored}\n", undone.digest.short())
}

fn document(undone: &Undone) -> serde_json::Value {
    let tag = undone.tag.as_ref().map(ToString::to_string);
    json!({"tag": tag, "digest": undone.digest, "restored_blobs": undone.restored})
}

fn lost_document(lost: &LostEntry) -> serde_json::Value {
    let missing = match &lost.remains {
        Remains::Missing(missing) => missing.clone(),
        _ => Vec::new(),
    };
    json!({
        "tag": lost.tag.as_ref().map(ToString::to_string),
        "digest": lost.digest,
        "complete": matches!(lost.remains, Remains::Complete(_)),
        "missing": missing,
        "tag_taken": lost.taken_by.is_some(),
        "state": state(lost),
    })
}
