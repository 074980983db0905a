//! `pfs pin`.

use jiff::Timestamp;
use pfs::{
    pin::{PinTerms, pin},
    store::{Pin, Store},
};
use serde_json::json;

use super::{
    Context, Ending,
    duration::duration,
    output::{print, print_json},
};

/// Keep an image whatever becomes of its tags, until it is unpinned.
///
/// A pinned image is refused to pfs delete and never chosen by pfs prune; if other tools remove its tag, its content stays.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pfs pin /srv/oci:app\n  pfs pin --until 30d --reason 'release 1.4' /srv/oci:app\n  pfs pin --until 2030-01-01T00:00:00Z /srv/oci:app"
)]
pub struct Args {
    /// The image.
    #[arg(value_name = "REF")]
    reference: String,
    /// When the pin ends by itself: a time, or how long from now, as in 12h or 30d.
    #[arg(long, value_name = "TIME|DURATION")]
    until: Option<String>,
    /// Why, for whoever reads pfs pins.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: Args) -> Ending {
    pin_image(context, &args).map_err(|failure| failure.json(args.json))
}

fn pin_image(context: &Context, args: &Args) -> Ending {
    let reference = context.reference(&args.reference)?;
    let now = Timestamp::now();
    let until = args.until.as_deref().map(|text| moment(text, now)).transpose().map_err(super::Failure::usage)?;
    let store = Store::open(&reference.store)?;
    let made = pin(&store, &reference.selector, PinTerms { until, reason: args.reason.clone() }, now)?;
    if args.json {
        print_json(&json!({"schema": "pfs.pin/1", "store": store.path(), "pin": document(&made)}))?;
    } else if !context.globals.quiet {
        let until = made.until.map_or_else(|| "until it is unpinned".into(), |until| format!("until {until}"));
        print(&format!("pinned {} ({}) {until}\n", name(&made), made.digest.short()))?;
    }
    Ok(0)
}

/// A time, or how long from now. Neither may be in the past: such a pin would keep nothing.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let until = match text.parse::<Timestamp>() {
        Ok(time) => Some(time),
        Err(_) => local_moment(text).or_else(|| now.checked_add(duration(text).ok()?).ok()),
    };
    let until =
        until.ok_or_else(|| format!("{text:?} is neither a time, as in 2030-01-01T12:00:00Z, nor a duration"))?;
    match until > now {
        true => Ok(Timestamp::from_second(until.as_second()).unwrap_or(until)),
        false => Err(format!("{until} is over already")),
    }
}

/// A time or a day without a zone, by this machine's clock.
fn local_moment(text: &str) -> Option<Timestamp> {
    let time: jiff::civil::DateTime = text.parse().ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
}

/// What a pin is called for people.
pub fn name(pin: &Pin) -> String {
    pin.tag.clone().unwrap_or_else(|| pin.digest.to_oci())
}

/// A pin for machines.
pub fn document(pin: &Pin) -> serde_json::Value {
    json!({
        "digest": pin.digest,
        "tag": pin.tag,
        "since": pin.since.to_string(),
        "until": pin.until.map(|until| until.to_string()),
        "reason": pin.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_ends_at_a_time_or_after_a_while() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(moment("2h", now).unwrap().to_string(), "2026-01-01T02:00:00Z");
        assert_eq!(moment("30d", now).unwrap().to_string(), "2026-01-31T00:00:00Z");
        assert_eq!(moment("2030-01-01T00:00:00Z", now).unwrap().to_string(), "2030-01-01T00:00:00Z");
        assert!(moment("2031-05-06", now).is_ok());
        for bad in ["", "yesterday", "2020-01-01T00:00:00Z", "-2h"] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }
}
