//! Whether the functions that a component exports have the parameters and results of the interface (PO-703).
//!
//! The generated bindings find interfaces by their names when a component is linked, and look at types when it is
//! instantiated. By then its start functions have run, and a module of another world would be called one that traps.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{ComponentNamedList, InstancePre, Lift, Lower, ResourceAny};

use crate::wasm::bindings::{lease_abi, lease_meta, place_abi, place_meta, place_types, types};
use crate::wasm::unit::HostState;

const LEASE: &str = "kubeocean:policy/lease@1.0.0";
const PLACE: &str = "kubeocean:policy/place@1.0.0";
const META: &str = "kubeocean:policy/meta@1.0.0";

type Pre = InstancePre<HostState>;
type Created = (Result<ResourceAny, String>,);
type LeaseCall<'a> = (ResourceAny, types::Now, types::Frame<'a>);
type PlaceCall<'a> =
    (ResourceAny, place_abi::Stage, place_types::Now, place_types::Frame<'a>, place_types::Frame<'a>);

/// Of a component that exports `lease`.
pub(super) fn check_lease(pre: &Pre) -> wasmtime::Result<()> {
    function::<(), (lease_meta::Description,)>(pre, META, "describe")?;
    function::<(&str,), Created>(pre, LEASE, "[static]lease-evaluator.create")?;
    function::<(ResourceAny,), (lease_abi::Needs,)>(pre, LEASE, "[method]lease-evaluator.needs")?;
    function::<LeaseCall<'_>, (Result<lease_abi::LeaseOutput, String>,)>(
        pre,
        LEASE,
        "[method]lease-evaluator.lease",
    )
}

/// Of a component that exports `place`.
pub(super) fn check_place(pre: &Pre) -> wasmtime::Result<()> {
    function::<(), (place_meta::Description,)>(pre, META, "describe")?;
    function::<(&str,), Created>(pre, PLACE, "[static]place-evaluator.create")?;
    function::<(ResourceAny,), (place_abi::Needs,)>(pre, PLACE, "[method]place-evaluator.needs")?;
    function::<PlaceCall<'_>, (Result<place_abi::PlaceOutput, String>,)>(
        pre,
        PLACE,
        "[method]place-evaluator.place",
    )
}

fn function<P, R>(pre: &Pre, interface: &str, name: &str) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let component = pre.component();
    let missing = || wasmtime::Error::msg(format!("export {interface} has no function {name}"));
    let instance = component.get_export_index(None, interface).ok_or_else(missing)?;
    let (item, _) = component.get_export(Some(&instance), name).ok_or_else(missing)?;
    let ComponentItem::ComponentFunc(function) = item else { return Err(missing()) };
    function
        .typecheck::<P, R>(&pre.instance_type())
        .map_err(|error| error.context(format!("function {name} of export {interface}")))
}
