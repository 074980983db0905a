//! Progress on stderr: a bar on a terminal, nothing elsewhere. Notices always.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pfs::observe::{Event, Observer};

/// An observer that shows a bar.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    /// A bar that appears when work takes longer than a moment; `quiet` has none.
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        bar.set_style(ProgressStyle::with_template("{msg} {spinner} {elapsed}").expect("the template is sound"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, quiet }
    }

    /// Shows so many bytes of so many, with rate and time left.
    pub fn bytes(&self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            let style = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            self.bar.set_style(ProgressStyle::with_template(style).expect("the template is sound"));
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Phase(what) => self.bar.set_message(what.to_string()),
            Event::Progress { done, total } => {
                if self.bar.length() != Some(total) {
                    let style = "{msg} {bar:30} {pos}/{len} {per_sec} {eta}";
                    self.bar.set_style(ProgressStyle::with_template(style).expect("the template is sound"));
                    self.bar.set_length(total);
                }
                self.bar.set_position(done);
            }
            Event::Notice(text) if !self.quiet => self.bar.suspend(|| anstream::eprintln!("{text}")),
            _ => {}
        }
    }
}
