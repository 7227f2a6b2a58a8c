//! What a package installs beside the program.

use std::path::Path;
use std::process::Command;

fn commands() -> Vec<String> {
    let help = crate::vfu("--help", Path::new("--"), &[]).ok();
    let listed = help
        .text()
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next().map(str::to_string)).collect()
}

/// Bash completes a command, an option of it, and a value of that.
#[test]
fn bash_completes_command_lines() {
    let script = crate::vfu("completions", Path::new("bash"), &[]).ok();
    for (words, completed) in
        [("vfu tra", "trace"), ("vfu trace --filt", "--filter"), ("vfu dma x copy --memory mess", "message")]
    {
        let complete = "
            COMP_WORDS=($WORDS) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _vfu vfu \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let done = Command::new("bash")
            .args(["--norc", "-c", &format!("{}\n{complete}", script.text())])
            .env("WORDS", words)
            .output()
            .unwrap();
        let reply = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && reply.lines().any(|line| line == completed), "{words}: {reply}");
    }
}

#[test]
fn other_shells_have_completions_of_every_command() {
    for shell in ["zsh", "fish"] {
        let script = crate::vfu("completions", Path::new(shell), &[]).ok();
        for command in commands() {
            assert!(script.text().contains(&command), "{shell}: {command}");
        }
    }
    crate::vfu("completions", Path::new("cmd"), &[]).usage("invalid value 'cmd'");
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    crate::vfu("man", &folder, &[]).ok();
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(page("vfu.1").contains(".SH SUBCOMMANDS") && page("vfu.1").contains("Exit codes:"));
    let commands = commands();
    assert!(
        ["info", "trace", "check", "completions"].iter().all(|name| commands.contains(&name.to_string()))
    );
    for command in commands.iter().filter(|name| *name != "help") {
        let page = page(&format!("vfu-{command}.1"));
        assert!(page.contains(&format!(".TH vfu-{command} 1")), "{command}: {page}");
    }
    crate::vfu("man", Path::new("/dev/null/x"), &[]).fails(6, "/dev/null/x: Not a directory");
}
