//! What the checks found: a table for people, JSON, or a file in the form of JUnit.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use clap::builder::styling::AnsiColor;
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use serde::Serialize;

use super::bench::{Bench, Verdict};
use super::{Chosen, Plan};
use crate::error::{Error, Result};
use crate::output;

/// Checks that there are.
#[derive(Serialize)]
pub struct List {
    checks: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    check: String,
    section: &'static str,
    what: &'static str,
    destructive: bool,
}

impl List {
    /// All of `chosen`.
    pub(super) fn new(chosen: &[Chosen]) -> List {
        let entry = |c: &Chosen| Entry {
            check: name(c),
            section: c.check.section,
            what: c.check.what,
            destructive: c.check.destructive,
        };
        List { checks: chosen.iter().map(entry).collect() }
    }

    /// For people.
    pub fn print(&self) -> Result<()> {
        let mut table = output::table(&["check", "section", "what a server does"], &[]);
        for entry in &self.checks {
            let needs = if entry.destructive { " (needs --destructive)" } else { "" };
            table.add_row([entry.check.as_str(), entry.section, &format!("{}{needs}", entry.what)]);
        }
        output::fit(&mut table);
        output::line(table.trim_fmt())
    }
}

/// The table with its verdicts, which are first in their lines, in colors.
fn colored(table: &str) -> String {
    let line = |line: &str| {
        // Columns have a space ahead.
        let (verdict, rest) =
            line.strip_prefix(' ').and_then(|line| line.split_once(' ')).unwrap_or(("", line));
        let color = match verdict {
            "pass" => AnsiColor::Green,
            "warn" => AnsiColor::Yellow,
            "fail" => AnsiColor::Red,
            "skip" => AnsiColor::Cyan,
            _ => return line.to_string(),
        };
        let style = color.on_default();
        format!(" {style}{verdict}{style:#} {rest}")
    };
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn name(chosen: &Chosen) -> String {
    format!("{}/{}", chosen.group, chosen.check.name)
}

/// What was found.
#[derive(Serialize)]
pub struct Report {
    socket: String,
    version: Option<String>,
    results: Vec<Finding>,
    summary: Summary,
}

#[derive(Serialize)]
struct Finding {
    check: String,
    section: &'static str,
    what: &'static str,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Default, Serialize)]
struct Summary {
    pass: usize,
    warn: usize,
    fail: usize,
    skip: usize,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        bench: &Bench,
        chosen: &[Chosen],
        verdicts: Vec<Option<Verdict>>,
    ) -> Report {
        let results: Vec<Finding> = chosen.iter().zip(verdicts).map(|(c, v)| Finding::new(c, v)).collect();
        let count = |verdict| results.iter().filter(|f| f.verdict == verdict).count();
        Report {
            socket: plan.socket.display().to_string(),
            version: bench.negotiated().map(|n| format!("{}.{}", n.major, n.minor)),
            summary: Summary {
                pass: count("pass"),
                warn: count("warn"),
                fail: count("fail"),
                skip: count("skip"),
            },
            results,
        }
    }

    /// How many checks failed.
    pub fn failures(&self) -> usize {
        self.summary.fail
    }

    /// For people: a line for each check, with the reason below it where there is one.
    pub fn print(&self) -> Result<()> {
        let mut table = output::table(&["verdict", "check", "section", ""], &[]);
        for finding in &self.results {
            let said = finding.reason.as_deref().unwrap_or(finding.what);
            table.add_row([finding.verdict, &finding.check, finding.section, said]);
        }
        output::fit(&mut table);
        output::styled(colored(&table.trim_fmt()))?;
        let Summary { pass, warn, fail, skip } = self.summary;
        output::line(format!("\n{pass} passed, {warn} with a warning, {fail} failed, {skip} skipped"))
    }

    /// Writes a file in the form of JUnit, which services that build and test read.
    pub fn junit(&self, path: &Path) -> Result<()> {
        let failed = |e: std::io::Error| Error::local(path.display(), e);
        let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
        xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None))).map_err(failed)?;
        let Summary { fail, skip, .. } = self.summary;
        let number = |n: usize| n.to_string();
        let suite = xml
            .create_element("testsuite")
            .with_attribute(("name", "vfu check"))
            .with_attribute(("tests", number(self.results.len()).as_str()))
            .with_attribute(("failures", number(fail).as_str()))
            .with_attribute(("errors", "0"))
            .with_attribute(("skipped", number(skip).as_str()));
        suite
            .write_inner_content(|xml| self.results.iter().try_for_each(|finding| finding.junit(xml)))
            .map_err(failed)?;
        let mut text = xml.into_inner();
        text.push(b'\n');
        File::create(path).and_then(|mut file| file.write_all(&text)).map_err(failed)
    }
}

impl Finding {
    fn new(chosen: &Chosen, verdict: Option<Verdict>) -> Finding {
        let (verdict, reason) = match verdict {
            Some(Verdict::Pass) => ("pass", None),
            Some(Verdict::Warn(why)) => ("warn", Some(why)),
            Some(Verdict::Fail(why)) => ("fail", Some(why)),
            Some(Verdict::Skip(why)) => ("skip", Some(why)),
            None => ("skip", Some("not reached".into())),
        };
        let Chosen { check, .. } = chosen;
        // What a server sent may be quoted.
        let reason = reason.map(|r| r.chars().map(|c| if c.is_control() { ' ' } else { c }).collect());
        Finding { check: name(chosen), section: check.section, what: check.what, verdict, reason }
    }

    fn junit(&self, xml: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let (group, check) = self.check.split_once('/').unwrap_or(("", &self.check));
        let case = xml
            .create_element("testcase")
            .with_attribute(("classname", format!("vfu.check.{group}").as_str()))
            .with_attribute(("name", check));
        let reason = self.reason.as_deref().unwrap_or_default();
        let about = format!("{} ({})", self.what, self.section);
        match self.verdict {
            "fail" => case.write_inner_content(|xml| {
                let failure = xml.create_element("failure").with_attribute(("message", reason));
                failure.write_text_content(BytesText::new(&about)).map(|_| ())
            }),
            "skip" => case.write_inner_content(|xml| {
                xml.create_element("skipped").with_attribute(("message", reason)).write_empty().map(|_| ())
            }),
            "warn" => case.write_inner_content(|xml| {
                xml.create_element("system-out").write_text_content(BytesText::new(reason)).map(|_| ())
            }),
            _ => case.write_empty(),
        }
        .map(|_| ())
    }
}
