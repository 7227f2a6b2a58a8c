//! Which messages are shown.

use std::str::FromStr;

use vfio_user::wire::{Command, Header, HeaderFlags, MessageType};

use super::decode::command_name;
use super::field::Fields;
use super::{Place, Socket};

/// Conditions that hold all together.
#[derive(Clone, Debug)]
pub struct Filter(Vec<Condition>);

#[derive(Clone, Debug)]
struct Condition {
    is_negated: bool,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// The message is of this command.
    Command(String),
    /// It is a command.
    IsCommand,
    /// It is a reply.
    IsReply,
    /// It is a reply that reports an error.
    IsError,
    /// It is a command that wants no reply.
    IsPosted,
    /// It came with descriptors.
    HasDescriptors,
    /// It was sent by `client` or `server`.
    From(&'static str),
    /// It was sent on this socket.
    On(Socket),
    /// A field of the message, or of the command that it replies to, has this value.
    Field(String, String),
}

/// What a filter looks at.
pub struct Subject<'a> {
    /// Where the message was sent.
    pub place: Place,
    /// Its header.
    pub header: &'a Header,
    /// Whether it came with descriptors.
    pub has_descriptors: bool,
    /// What it says.
    pub fields: &'a Fields,
    /// Of a reply: what the command said.
    pub asked: Option<&'a Fields>,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        text.split(',').map(|part| condition(part.trim())).collect::<Result<_, _>>().map(Filter)
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let (is_negated, text) = match text.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, text),
    };
    let what = match text.to_ascii_lowercase().as_str() {
        "command" => What::IsCommand,
        "reply" => What::IsReply,
        "error" => What::IsError,
        "posted" => What::IsPosted,
        "descriptors" => What::HasDescriptors,
        "client" => What::From("client"),
        "server" => What::From("server"),
        "main" => What::On(Socket::Main),
        "twin" => What::On(Socket::Twin),
        _ => match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                What::Field(name.trim().to_string(), value.trim().to_string())
            }
            _ if is_command(text) => What::Command(text.to_string()),
            _ => {
                let commands: Vec<String> = Command::ALL.iter().map(ToString::to_string).collect();
                return Err(format!(
                    "'{text}' is none of command, reply, error, posted, descriptors, client, server, main, twin, \
                     NAME=VALUE, or a command: {}",
                    commands.join(", ")
                ));
            }
        },
    };
    Ok(Condition { is_negated, what })
}

fn is_command(text: &str) -> bool {
    Command::ALL.iter().any(|command| command.to_string().eq_ignore_ascii_case(text))
}

impl Filter {
    /// Whether all conditions hold.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.0.iter().all(|condition| condition.what.holds(subject) != condition.is_negated)
    }
}

impl What {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        let header = subject.header;
        let is_command = header.message_type() == Some(MessageType::Command);
        match self {
            What::Command(name) => command_name(header.cmd).eq_ignore_ascii_case(name),
            What::IsCommand => is_command,
            What::IsReply => !is_command,
            What::IsError => !is_command && header.flags().contains(HeaderFlags::ERROR),
            What::IsPosted => is_command && header.no_reply(),
            What::HasDescriptors => subject.has_descriptors,
            What::From(name) => subject.place.from.name() == *name,
            What::On(socket) => subject.place.socket == *socket,
            What::Field(name, value) => {
                subject.fields.has(name, value) || subject.asked.is_some_and(|fields| fields.has(name, value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Peer;

    #[test]
    fn conditions() {
        let mut fields = Fields::default();
        fields.text("region", "BAR0");
        fields.hex("offset", 0x1000u64);
        let header = Header::command(1, Command::RegionWrite as u16, 40);
        let place = Place { connection: 1, socket: Socket::Main, from: Peer::Client };
        let reply = header.error_reply(vfio_user::wire::Errno::EINVAL);
        let empty = Fields::default();
        let command =
            Subject { place, header: &header, has_descriptors: false, fields: &fields, asked: None };
        let from = Place { from: Peer::Server, ..place };
        let reply = Subject {
            place: from,
            header: &reply,
            has_descriptors: false,
            fields: &empty,
            asked: Some(&fields),
        };
        for (text, of_command, of_reply) in [
            ("region_write", true, true),
            ("DMA_MAP", false, false),
            ("!DMA_MAP", true, true),
            ("command", true, false),
            ("reply", false, true),
            ("error", false, true),
            ("posted", false, false),
            ("client", true, false),
            ("server", false, true),
            ("main", true, true),
            ("twin", false, false),
            ("descriptors", false, false),
            ("region=bar0", true, true),
            ("region=BAR1", false, false),
            ("Region=BAR0, offset=4k, !reply", true, false),
            ("! offset=4k", false, false),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!((filter.matches(&command), filter.matches(&reply)), (of_command, of_reply), "{text}");
        }
        for text in ["", "nonsense", "=x", "command,", "REGION"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
