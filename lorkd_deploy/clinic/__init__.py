"""Answers as a hospital's systems take them: DICOM SR, FHIR, a DICOM receiver, and signatures.

Patients' and studies' identifiers go into SR and FHIR, where those standards want them, and into
nothing else that is written here.
"""
