//! For tests: a scripted raw peer that sends given bytes and expects PDUs.
