//! The life of a lease (BU section 18).

pub(crate) mod picture;
pub(crate) mod scenario;
