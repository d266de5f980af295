use crate::Error;
pub(crate) fn run(_: &[String]) -> Result<(), Error> {
    Ok(())
}
