"""An answer as FHIR R4 resources, along HL7's guide "DICOM SR to FHIR Resource Mapping".

One Bundle an image: DiagnosticReport, a group Observation with a member for each class, and the
Patient, ImagingStudy and Device that they refer to. fhir.resources checks it (R4B, in which these
resources are as in R4).
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from lorkd_deploy.clinic.answered import NOTICE, Answered
from lorkd_deploy.dicom.header import foreign

DCM = "http://dicom.nema.org/resources/ontology/DCM"
UCUM = "http://unitsofmeasure.org"
INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
OID = "urn:ietf:rfc3986"
GENDER = {"M": "male", "F": "female", "O": "other"}


def fhir_bundle(answer: Answered) -> bytes:
    """The Bundle as JSON; the same image and engine give the same identifiers again."""
    from fhir.resources.R4B.bundle import Bundle

    with foreign():
        resources = _resources(answer)
        entries = [
            {"fullUrl": _url(answer, place), "resource": resource}
            for place, resource in resources.items()
        ]
        bundle = Bundle.model_validate(
            {
                "resourceType": "Bundle",
                "type": "collection",
                "identifier": _oid(answer.uid("fhir")),
                "timestamp": answer.at.isoformat(timespec="seconds"),
                "entry": entries,
            }
        )
        text: str = bundle.model_dump_json(indent=1)
    return text.encode() + b"\n"


def _url(answer: Answered, place: str) -> str:
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, answer.uid(place))}"


def _oid(uid: str) -> dict[str, str]:
    return {"system": OID, "value": f"urn:oid:{uid}"}


def _resources(answer: Answered) -> dict[str, Any]:
    refer = {place: {"reference": _url(answer, place)} for place in ("patient", "study", "device")}
    finding = {name: _observation(answer, refer, name) for name in answer.prediction.probabilities}
    members = [{"reference": _url(answer, f"class {name}")} for name in finding]
    group = _common(answer, refer) | {
        "identifier": [_oid(answer.uid("group"))],
        "code": _concept("125007", DCM, "Measurement Group") | {"text": answer.prediction.task},
        "valueString": answer.prediction.label or "none",
    }
    if members:
        group["hasMember"] = members
    report = {
        "resourceType": "DiagnosticReport",
        "identifier": [_oid(answer.uid("sr"))],
        "status": "preliminary",
        "category": [_category()],
        "code": _concept("18748-4", "http://loinc.org", "Diagnostic imaging study"),
        "subject": refer["patient"],
        "issued": answer.at.isoformat(timespec="seconds"),
        "effectiveDateTime": _when(answer) or answer.at.isoformat(timespec="seconds"),
        "result": [{"reference": _url(answer, "group")}],
        "imagingStudy": [refer["study"]],
        "conclusion": f"{answer.prediction.task}: {answer.prediction.label or 'none'}. {NOTICE}.",
    }
    if accession := str(answer.source.AccessionNumber or ""):
        report["basedOn"] = [{"type": "ServiceRequest", "identifier": {"value": accession}}]
    return {
        "report": report,
        "group": group,
        **{f"class {name}": one for name, one in finding.items()},
        "patient": _patient(answer.source),
        "study": _study(answer, refer),
        "device": _device(answer),
    }


def _common(answer: Answered, refer: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "preliminary",
        "category": [_category()],
        "subject": refer["patient"],
        "issued": answer.at.isoformat(timespec="seconds"),
        "device": refer["device"],
        "derivedFrom": [refer["study"]],
    }


def _observation(answer: Answered, refer: dict[str, Any], name: str) -> dict[str, Any]:
    value, scheme, meaning = answer.code_of(name)
    sign = ("POS", "Positive") if name in answer.positive else ("NEG", "Negative")
    percent = 100 * answer.prediction.probabilities[name]
    return _common(answer, refer) | {
        "identifier": [_oid(answer.uid(f"finding {name}"))],
        "code": _concept(value, f"urn:lorkd:{scheme}", meaning),
        "valueQuantity": {
            "value": float(f"{percent:.6g}"),
            "unit": "%",
            "system": UCUM,
            "code": "%",
        },
        "interpretation": [_concept(sign[0], INTERPRETATION, sign[1])],
    }


def _concept(code: str, system: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def _category() -> dict[str, Any]:
    system = "http://terminology.hl7.org/CodeSystem/observation-category"
    return _concept("imaging", system, "Imaging")


def _patient(source: Any) -> dict[str, Any]:
    patient: dict[str, Any] = {"resourceType": "Patient"}
    if number := str(source.PatientID or ""):
        patient["identifier"] = [{"value": number}]
    if name := source.PatientName:
        given = [part for part in (name.given_name, name.middle_name) if part]
        patient["name"] = [
            {"text": str(name)}
            | ({"family": name.family_name} if name.family_name else {})
            | ({"given": given} if given else {})
        ]
    if sex := GENDER.get(str(source.PatientSex or "")):
        patient["gender"] = sex
    if born := _date(str(source.PatientBirthDate or "")):
        patient["birthDate"] = born
    return patient


def _study(answer: Answered, refer: dict[str, Any]) -> dict[str, Any]:
    source = answer.source
    study: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{source.StudyInstanceUID}"}],
        "status": "available",
        "subject": refer["patient"],
        "series": [
            {
                "uid": str(source.SeriesInstanceUID),
                "modality": {"system": DCM, "code": str(source.Modality)},
                "instance": [
                    {
                        "uid": str(source.SOPInstanceUID),
                        "sopClass": {"system": OID, "code": f"urn:oid:{source.SOPClassUID}"},
                    }
                ],
            }
        ],
    }
    if when := _when(answer):
        study["started"] = when
    return study


def _device(answer: Answered) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "identifier": [{"system": "urn:lorkd:engine-sha256", "value": answer.engine_sha256}],
        "deviceName": [{"name": answer.name, "type": "model-name"}],
        "version": [{"value": answer.version}],
        "note": [{"text": NOTICE}],
    }


def _when(answer: Answered) -> str | None:
    """The study's date, without its time, whose zone isn't known."""
    return _date(str(answer.source.StudyDate or ""))


def _date(text: str) -> str | None:
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", text)
    return "-".join(match.groups()) if match else None
