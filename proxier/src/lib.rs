//! The Proxier: the kubelet API of vnodes, for logs, exec, attach, port-forward and metrics.
//!
//! Its place in the workspace is settled, so that nothing of it grows elsewhere; the code comes with the program. Until
//! then vnodes run pods and report their state, and `kubectl logs` and `exec` on them are refused by the API server.

#![forbid(unsafe_code)]
