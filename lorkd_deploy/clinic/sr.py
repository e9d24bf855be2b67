"""An answer as a DICOM structured report: TID 1500, by highdicom."""

from __future__ import annotations

import io
from typing import Any

from lorkd_deploy._version import __version__
from lorkd_deploy.clinic.answered import NOTICE, Answered
from lorkd_deploy.dicom.header import foreign


def structured_report(answer: Answered) -> bytes:
    """The report as a file's bytes: for each class its certainty in percent and whether it is the
    finding, the algorithm with its version and engine hash, and the source image.

    The same image and engine give the same SOP instance UID, so that an archive keeps one.
    """
    import highdicom as hd
    import pydicom

    with foreign():
        report = hd.sr.ComprehensiveSR(
            evidence=[answer.source],
            content=_content(answer),
            series_instance_uid=answer.series_uid,
            series_number=9900,
            sop_instance_uid=answer.uid("sr"),
            instance_number=1,
            manufacturer="lorkd-deploy",
            is_complete=True,
            is_final=False,
            is_verified=False,
            institution_name=None,
            series_description=answer.name[:64],
        )
        report.SpecificCharacterSet = "ISO_IR 192"
        report.ManufacturerModelName = answer.name[:64]
        report.SoftwareVersions = __version__
        report.DeviceSerialNumber = answer.engine_sha256[:16]
        if report.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in report:
            report.DeidentificationMethod = "as the source image was"
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, report, enforce_file_format=True)
    return stream.getvalue()


def _content(answer: Answered) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=answer.uid("device"),
        name="lorkd-deploy",
        manufacturer_name="lorkd-deploy",
        model_name=answer.name[:64],
        serial_number=answer.engine_sha256[:16],
    )
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=device
    )
    groups = [_group(answer, name) for name in answer.prediction.probabilities]
    if answer.prediction.outcome != "answered":
        groups.append(_group(answer, answer.prediction.outcome))
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )


def _group(answer: Answered, name: str) -> Any:
    """One class: the finding, how certain it is, and whether the answer names it; or the outcome
    (`outside`, `refer`) where that is no answer.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    probability = answer.prediction.probabilities.get(name)
    present = name in answer.positive or probability is None
    certainty = hd.sr.CodedConcept("111012", "DCM", "Certainty of Finding")
    algorithm = hd.sr.AlgorithmIdentification(
        name=answer.name,
        version=answer.version,
        parameters=[
            f"engine sha256 {answer.engine_sha256}",
            f"bundle sha256 {answer.artifact.bundle_sha256}",
            f"preprocessing sha256 {answer.artifact.preprocess_sha256}",
            NOTICE,
        ],
    )
    image = hd.sr.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=answer.source.SOPClassUID,
        referenced_sop_instance_uid=answer.source.SOPInstanceUID,
        referenced_frame_numbers=_frames(answer),
    )
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=answer.uid(f"finding {name}"), identifier=f"{answer.prediction.task}: {name}"
        ),
        finding_type=hd.sr.CodedConcept(*answer.code_of(name)),
        algorithm_id=algorithm,
        measurements=[]
        if probability is None
        else [
            hd.sr.Measurement(
                name=certainty, value=float(f"{100 * probability:.6g}"), unit=codes.UCUM.Percent
            )
        ],
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(
                name=hd.sr.CodedConcept("705057003", "SCT", "Presence"),
                value=hd.sr.CodedConcept("52101004", "SCT", "Present")
                if present
                else hd.sr.CodedConcept("2667000", "SCT", "Absent"),
            )
        ],
        source_images=[image],
    )


def _frames(answer: Answered) -> list[int] | None:
    several = int(answer.source.get("NumberOfFrames") or 1) > 1
    return [answer.prediction.frame or 1] if several else None
