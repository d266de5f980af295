use crate::Error;
pub(crate) fn run() -> Result<(), Error> {
    Ok(())
}
