use crate::args;
use crate::client::Client;
use crate::error::Result;
pub fn run(_client: &mut Client, _args: &args::Dma) -> Result<()> { Ok(()) }
